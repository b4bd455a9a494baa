"""The layers whose columns can be solved for: linear layers and convolutions that run once, each with its weight."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from lightning_fold.rewrites.channels.bias_sinks import BiasSink, find_bias_sink
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction

# What find_consumers finds, for the notes of a report that name the layers it does not.
ONLY_SOLVED = "only Linear and ungrouped, zero-padded Conv2d layers that evaluation runs once"


@dataclass(frozen=True)
class Consumer:
    """A layer that reads channels.

    Attributes:
        path: dotted name of the module.
        contraction: what it computes.
        shift: what takes a constant in place of the output; ``None`` where nothing does.
    """

    path: str
    contraction: Contraction
    sink: BiasSink | None

    @property
    def weight(self) -> str:
        """Dotted name of the weight."""
        return f"{self.path}.weight".removeprefix(".")

    def reads_each_once(self, structure: Structure) -> bool:
        """Whether every column is a channel of its own, as it is not after a flatten."""
        columns = self.contraction.columns
        return columns is not None and len(structure.group_of[columns].unique()) == len(columns)


def find_consumers(structure: Structure) -> list[Consumer]:
    """Every layer that evaluation runs and least squares can solve for, in the order in which they run."""
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
