"""Which dimensions of which tensors are columns: when channels are merged, columns are summed, all others averaged."""

from dataclasses import dataclass
from operator import getitem

from torch import Tensor
from torch.fx import Node

from lightning_fold.structure.graph.trace import Trace, layer_of
from lightning_fold.structure.labels import Axis, Contraction, Labels
from lightning_fold.structure.operators.nodes import family, operator_name
from lightning_fold.structure.values import Value

_MOVED = ("movement", "positions", "identity", "cat", "stack")


@dataclass(frozen=True)
class Columns:
    """How the ungrouped contractions of a network read its tensors.

    Attributes:
        read: name and dimension of every tensor with which a contraction reads channels, directly or after movement.
        unsummed: labels of channels whose columns cannot be replaced by one sum, and why.
    """

    read: frozenset[tuple[str, int]]
    unsummed: tuple[tuple[Tensor, str], ...]


def find_columns(trace: Trace, labels: Labels) -> Columns:
    """Follow every tensor of ``trace`` through movement and casts to the contractions that use it as their weight."""
    contractions = {c.node: c for c in labels.contractions if c.groups == 1}
    ends: dict[str, list[Contraction | None]] = {}
    for node, name in trace.names.items():
        ends.setdefault(name, []).extend(_ends(node, contractions))
    read, unsummed = set(), []
    for key, axis in labels.axes.items():
        reads = [c is not None and _reads(labels, c, axis) for c in ends[key[0]]]
        if any(reads):
            read.add(key)
        if any(reads) and not all(reads):
            unsummed.append((axis.labels, f"is read with {axis.tensor}, which is used in another way, too"))
    met = {c.node for found in ends.values() for c in found if c is not None}
    for node, contraction in contractions.items():
        columns = _columns(labels, contraction)
        if node not in met and columns is not None:
            unsummed.append((columns, f"is read by {layer_of(node) or 'the network'} with a weight that it computes"))
    return Columns(frozenset(read), tuple(unsummed))


def _ends(source: Node, contractions: dict[Node, Contraction]) -> list[Contraction | None]:
    """The contractions that use ``source`` as their weight, directly or moved, and ``None`` for each other use."""
    found: list[Contraction | None] = []
    for user in source.users:
        contraction = contractions.get(user)
        if contraction is not None and contraction.weight is source:
            found.append(contraction)
        elif _is_moved(user):
            found += _ends(user, contractions)
        else:
            found.append(None)
    return found


def _is_moved(node: Node) -> bool:
    """Whether ``node`` only moves or casts the elements of its operands, or multiplies them all by one number."""
    if family(node) == "cast":
        return node.meta["val"].is_floating_point()
    if operator_name(node) in ("mul", "div"):
        return len(node.all_input_nodes) == 1 and not node.kwargs and node.args[0] is not node.args[1]
    return family(node) in _MOVED or node.target is getitem or operator_name(node) == "neg"


def _reads(labels: Labels, contraction: Contraction, axis: Axis) -> bool:
    columns = _columns(labels, contraction)
    return columns is not None and bool(((columns >= axis.start) & (columns < axis.start + axis.size)).any())


def _columns(labels: Labels, contraction: Contraction) -> Tensor | None:
    """The labels along the columns of the weight of ``contraction``."""
    value = labels.values[contraction.weight]
    return value.labels.get(contraction.column_dim) if isinstance(value, Value) else None
