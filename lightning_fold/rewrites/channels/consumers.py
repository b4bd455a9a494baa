"""Layers whose columns can be solved for: linear layers and convolutions that run once and own their weight."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from lightning_fold.rewrites.channels.bias_sinks import BiasSink, find_bias_sink
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction

# How report notes describe the layers that find_consumers returns.
ONLY_SOLVED = "only Linear and ungrouped, zero-padded Conv2d layers that evaluation runs once"


@dataclass(frozen=True)
class Consumer:
    """A layer that reads channels.

    Attributes:
        path: dotted name of the module.
        contraction: its computation.
        sink: the tensor to which a constant is added instead of the output; ``None`` if there is none.
    """

    path: str
    contraction: Contraction
    sink: BiasSink | None

    @property
    def weight(self) -> str:
        """Dotted name of the weight."""
        return f"{self.path}.weight".removeprefix(".")

    def reads_each_once(self, structure: Structure) -> bool:
        """Whether every column is a different channel; this is not so after a flatten."""
        columns = self.contraction.columns
        return columns is not None and len(structure.group_of[columns].unique()) == len(columns)


def find_consumers(structure: Structure) -> list[Consumer]:
    """All layers that run in evaluation and that least squares can solve for, in execution order."""
    names, modules = structure.trace.names, structure.trace.modules
    calls = Counter(layer_of(contraction.node) for contraction in structure.labels.contractions)
    found = []
    for contraction in structure.labels.contractions:
        path = layer_of(contraction.node)
        module, weight = modules.get(path), names.get(contraction.weight, "")
        plain = type(module) is nn.Linear or (
            type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        )
        known = weight == f"{path}.weight".removeprefix(".") and structure.uses[weight] == 1 and calls[path] == 1
        if plain and known and contraction.node in structure.trace.evaluated:
            found.append(Consumer(path, contraction, find_bias_sink(structure, contraction)))
    return found
