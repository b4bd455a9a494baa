"""The tensor to which a constant is added instead of a layer's output."""

from dataclasses import dataclass

from torch.fx import Node

from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction
from lightning_fold.structure.operators.nodes import batch_norm_behind


@dataclass(frozen=True)
class BiasSink:
    """Adding ``sign * constant`` to ``tensor`` adds the constant to a layer's output.

    ``created_beside`` names the weight next to which ``tensor`` has to be created first.
    """

    tensor: str
    sign: int
    created_beside: str | None = None


def find_bias_sink(structure: Structure, contraction: Contraction) -> BiasSink | None:
    """The bias or, without one, the running mean of the BatchNorm right after; ``None`` if the tensor is shared."""
    norm = batch_norm_behind(contraction.node)
    node, sign = contraction.bias, 1
    if node is None and norm is not None:
        node, sign = norm.args[3], -1
    name = structure.trace.names.get(node) if isinstance(node, Node) else None
    return BiasSink(name, sign) if name is not None and structure.uses[name] == 1 else None
