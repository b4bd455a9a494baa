"""The layers whose columns can be solved for: linear layers and convolutions that run once, each with its weight."""

from collections import Counter
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction
from lightning_fold.structure.operators import family
from lightning_fold.structure.trace import layer_of


@dataclass(frozen=True)
class Consumer:
    """A layer that reads channels.

    Attributes:
        path: dotted name of the module.
        contraction: what it computes.
        shift: the tensor that takes a constant in place of the output, and the sign; ``None`` where there is none.
    """

    path: str
    contraction: Contraction
    shift: tuple[str, int] | None

    @property
    def weight(self) -> str:
        """Dotted name of the weight."""
        return f"{self.path}.weight".removeprefix(".")


def find_consumers(structure: Structure) -> list[Consumer]:
    """Every layer of the network that least squares can solve for, in the order in which they run."""
    names, modules = structure.trace.names, structure.trace.modules
    uses = Counter(names[node] for node in names for _ in node.users)
    calls = Counter(layer_of(contraction.node) for contraction in structure.labels.contractions)
    found = []
    for contraction in structure.labels.contractions:
        path = layer_of(contraction.node)
        module, weight = modules.get(path), names.get(contraction.weight, "")
        plain = type(module) is nn.Linear or (
            type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        )
        known = weight == f"{path}.weight".removeprefix(".") and uses[weight] == 1 and calls[path] == 1
        if plain and known:
            found.append(Consumer(path, contraction, _shift(structure, contraction, uses)))
    return found


def _shift(structure: Structure, contraction: Contraction, uses: Counter[str]) -> tuple[str, int] | None:
    names = structure.trace.names
    if contraction.bias is not None:
        bias = names.get(contraction.bias)
        return (bias, 1) if bias is not None and uses[bias] == 1 else None
    following = list(contraction.node.users)
    if len(following) == 1 and family(following[0]) == "batch_norm":
        mean = following[0].args[3]
        if isinstance(mean, Node) and mean in names and uses[names[mean]] == 1:
            return names[mean], -1
    return None
