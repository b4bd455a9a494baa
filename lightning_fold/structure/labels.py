"""Labels of channels, and the records of a run over them.

Every index of every dimension of every parameter and buffer has a label. A value carries, for each of its dimensions
that holds channels, the labels of those channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.constant_values import Constants
from lightning_fold.structure.graph.trace import Trace, layer_of
from lightning_fold.structure.operators.contractions import contraction_groups, is_transposed
from lightning_fold.structure.operators.nodes import full_name, is_aten, operands
from lightning_fold.structure.values import Value, blank, labels_in

PINNED = 0
WINDOW = "is inside a convolution's window or group"  # positions of a weight that are not channels of the network


@dataclass(frozen=True)
class Axis:
    """One dimension of one tensor; index ``i`` has label ``start + i``."""

    tensor: str
    dim: int
    start: int
    size: int

    @property
    def labels(self) -> Tensor:
        """(size,) the label of each index."""
        return torch.arange(self.start, self.start + self.size)


@dataclass(frozen=True)
class Pin:
    """Labels that must be kept, and why."""

    labels: Tensor
    operator: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Contraction:
    """A linear or convolution: ``rows`` and ``columns`` are the labels of its output and input channels.

    ``rows`` or ``columns`` is ``None`` where the channels have no labels (for example, those of a network's input). For
    a grouped convolution ``columns`` has one label for each input channel of the convolution, not of its weight.
    """

    node: Node
    rows: Tensor | None
    columns: Tensor | None

    @property
    def value(self) -> Node:
        """The node whose channels are read."""
        return operands(self.node, self.node.args, self.node.kwargs)[0]

    @property
    def weight(self) -> Node:
        """The node of the weight."""
        return operands(self.node, self.node.args, self.node.kwargs)[1]

    @property
    def bias(self) -> Node | None:
        """The node of the bias, if there is one."""
        bias = operands(self.node, self.node.args, self.node.kwargs)[2]
        return bias if isinstance(bias, Node) else None

    @property
    def column_dim(self) -> int:
        """The dimension of the weight that holds the columns."""
        return 0 if is_transposed(self.node) else 1

    @property
    def groups(self) -> int:
        """The number of groups of a convolution; 1 for a linear layer."""
        return contraction_groups(self.node)


@dataclass(frozen=True)
class Blocks:
    """Channels in blocks that must all keep the same number of channels.

    A grouped convolution has two sides, its inputs and its outputs; a block is removed on both sides or on neither.

    Attributes:
        sides: labels, (blocks, channels of a block) each.
        layer: the layer that cuts them into blocks; with ``shared_statistics``, the GroupNorm that counts its blocks.
        reason: why they must keep the same number, for the report.
        fixed_count: the network's code fixes the number of blocks, so none can be removed.
        fixed_size: the network's code fixes the number of channels of a block, so all or none of them are removed.
        shared_statistics: the channels of a block share statistics; an exact rewrite removes all of them or none.
    """

    sides: tuple[Tensor, ...]
    layer: str
    reason: str
    fixed_count: bool = False
    fixed_size: bool = False
    shared_statistics: bool = False


@dataclass(frozen=True)
class Norm:
    """A normalisation over channels: (blocks, channels of a block) labels that share statistics, and their dimension.

    ``channels`` is ``None`` where it normalises over several dimensions, or over channels that have no labels.
    """

    node: Node
    channels: Tensor | None
    dim: int


@dataclass(frozen=True)
class Product:
    """A product of two values summed over channels, as of queries and keys.

    Attributes:
        node: the operator: attention, or a matrix product.
        channels: labels of the channels summed over, in the layout of the first operand, size 1 where they do not vary.
        given: (heads, ...) labels of the output of each head: if nothing reads it, the head's channels are not read.
        writer: the contraction that writes the queries, where the operator scales by their number; else ``None``.
    """

    node: Node
    channels: Tensor
    given: Tensor | None = None
    writer: Contraction | None = None


@dataclass(frozen=True)
class GlobalResponseNorm:
    """``channels`` are divided by their mean plus a number, and then scaled by a tensor of the network.

    Attributes:
        channels: (channels,) their labels.
        scale: name of the tensor.
        layer: the module that holds the number.
        attribute: name of the module's attribute that holds it.
        added: the number.
    """

    channels: Tensor
    scale: str
    layer: str
    attribute: str
    added: float


@dataclass(frozen=True)
class HeadUse:
    """``node`` reads head ``i`` of ``taken`` from ``source`` only for head ``i`` of ``given``: (heads, ...) labels."""

    node: Node
    source: Node
    taken: Tensor
    given: Tensor


@dataclass(frozen=True)
class Size:
    """A Python attribute of the module ``layer`` that counts the channels ``labels``, (blocks, channels of a block).

    Its ``value`` is, or is proportional to, the number of ``"channels"``, of ``"blocks"``, or of channels of each block
    (``"width"``), as ``counts`` says.
    """

    layer: str
    attribute: str
    labels: Tensor
    counts: str
    value: int


@dataclass
class Labels:
    """The records of the run over the graph."""

    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    values: dict[Node, Any] = field(default_factory=dict)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    blocks: list[Blocks] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    global_response_norms: list[GlobalResponseNorm] = field(default_factory=list)
    head_uses: list[HeadUse] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    count: int = 1

    def groups(self) -> Tensor:
        """(labels,) the group of each label; labels tied directly or through others form one group."""
        left, right = (
            np.concatenate([np.zeros(0, dtype=np.int64), *(pair[side].flatten().numpy() for pair in self.ties)])
            for side in (0, 1)
        )
        graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(self.count, self.count))
        return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))


class LabelRecorder:
    """The state of one run over the graph: the labels so far, and the records of the rules."""

    def __init__(self, trace: Trace, known: Constants, around: set[Node], *, ask_attributes: bool) -> None:
        self.labels = Labels()
        self.trace = trace
        self.constants = known
        self.around = around
        self.ask_attributes = ask_attributes

    def axis(self, name: str, dim: int, size: int) -> Axis:
        """One dimension of a parameter or buffer, with its own labels."""
        if (name, dim) not in self.labels.axes:
            self.labels.axes[name, dim] = Axis(name, dim, int(self.fresh(size)[0]), size)
        return self.labels.axes[name, dim]

    def fresh(self, size: int) -> Tensor:
        """(size,) labels that no tensor holds."""
        self.labels.count += size
        return torch.arange(self.labels.count - size, self.labels.count)

    def tie(self, left: Tensor, right: Tensor) -> None:
        """Keep or remove these channels together, each with the one at the same position."""
        self.labels.ties.append((left, right.expand_as(left)))

    def pin(self, labels: Iterable[Tensor], node: Node, reason: str) -> None:
        """Keep these channels; the report gives the operator, its layer, and the reason."""
        for each in labels:
            self.labels.pins.append(Pin(each.unique(), full_name(node), layer_of(node), reason))

    def tie_or_pin(self, left: Tensor | None, right: Tensor | None, node: Node, reason: str) -> None:
        """Tie two sides that meet; if one has no labels, pin the other."""
        if left is not None and right is not None:
            self.tie(left, right)
        else:
            self.pin([side for side in (left, right) if side is not None], node, reason)

    def unknown(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """Pin the channels that an operator without a rule reads."""
        hint = "" if is_aten(node.target) else " (lightning_fold.register_operator gives it one)"
        self.pin(labels_in((args, kwargs)), node, f"operator {full_name(node)} has no rule{hint}")
        return blank(node)

    def without_heads(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments for an operator without support for heads: corresponding channels of all heads are tied."""

        def collapse(value: Any) -> Any:
            if not isinstance(value, Value) or not value.head_labels:
                return value
            fields = dict(value.labels)
            for over_heads in value.head_labels:
                inner = max(dim for dim in range(over_heads.dim()) if over_heads.shape[dim] > 1)
                rows = over_heads.movedim(inner, -1).reshape(-1, over_heads.shape[inner])
                for other in rows[1:]:
                    self.tie(rows[0], other)
                fields[inner] = rows[0]
            return Value(value.shape, fields)

        return tree_map(collapse, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Value))
