"""Which channels belong together: the graph run forwards on labels.

Every index of every dimension of every parameter and buffer has a label. A value carries, for each of its dimensions
that holds channels, the labels of those channels. Element-wise operators tie the labels of their operands,
a contraction ties the labels it reads to its weight's columns and hands on the labels of its rows, data movement is
executed on the labels as it is. What an operator without a rule reads is pinned: it stays, and the report says why.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.structure.constants import UNKNOWN, Values, along, contraction_channel, contraction_groups, depends
from lightning_fold.structure.operators import family, functional, operator_name, restride
from lightning_fold.structure.trace import Trace, interpret, layer_of

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
class Value:
    """A tensor of the graph: its shape, and the labels along each dimension that holds channels."""

    shape: torch.Size
    fields: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pin:
    """Labels that must stay, and why."""

    labels: Tensor
    operator: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Contraction:
    """A linear or convolution: ``rows`` and ``columns`` are the labels of its output and input channels.

    ``rows`` or ``columns`` is ``None`` where the channels have no labels (a network's input, for one). For a grouped
    convolution ``columns`` has one label for each input channel of the convolution, not of its weight.
    """

    node: Node
    rows: Tensor | None
    columns: Tensor | None

    @property
    def value(self) -> Node:
        """The node whose channels are read."""
        return self.node.all_input_nodes[0]

    @property
    def weight(self) -> Node:
        """The node of the weight."""
        return self.node.args[1]  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> Node | None:
        """The node of the bias, if there is one."""
        bias = self.node.args[2] if len(self.node.args) > 2 else self.node.kwargs.get("bias")
        return bias if isinstance(bias, Node) else None

    @property
    def groups(self) -> int:
        """The number of groups of a convolution; 1 for a linear layer."""
        return contraction_groups(self.node)


@dataclass(frozen=True)
class Blocks:
    """Channels in blocks that must keep equally many, ``(blocks, channels of a block)`` each.

    A grouped convolution has two sides, its inputs and its outputs; a block leaves on both sides or on none. With
    ``counted`` the network's code counts the blocks, so none can leave.
    """

    sides: tuple[Tensor, ...]
    layer: str
    reason: str
    counted: bool = False


@dataclass
class Labels:
    """What the run over the graph recorded."""

    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    values: dict[Node, Any] = field(default_factory=dict)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    blocks: list[Blocks] = field(default_factory=list)
    count: int = 1


def label_channels(trace: Trace, known: Values) -> Labels:
    """Run ``trace`` on labels. ``known`` gives the index tensors that data movement reads."""
    return _Run(trace, known).labels


class _Run:
    """The state of one run: the labels so far, and the values of the graph known to be constant."""

    def __init__(self, trace: Trace, known: Values) -> None:
        self.labels = Labels()
        self.trace = trace
        self.known = known
        self.labels.values = interpret(trace, self._placeholder, self._call)
        for node in trace.outputs:
            self._pin(_fields(self.labels.values[node]), node, "is an output of the network")

    def _placeholder(self, node: Node) -> Any:
        tensor = self.trace.tensors.get(node)
        if tensor is None:
            return tree_map(lambda fake: Value(fake.shape) if isinstance(fake, Tensor) else fake, node.meta["val"])
        if node not in self.trace.names or not node.users or not tensor.is_floating_point():
            return Value(tensor.shape)
        name = self.trace.names[node]
        dims = [dim for dim in range(tensor.dim()) if tensor.shape[dim] > 1]
        return Value(tensor.shape, {dim: self._axis(name, dim, tensor.shape[dim]).labels for dim in dims})

    def _axis(self, name: str, dim: int, size: int) -> Axis:
        if (name, dim) not in self.labels.axes:
            self.labels.axes[name, dim] = Axis(name, dim, self.labels.count, size)
            self.labels.count += size
        return self.labels.axes[name, dim]

    def _call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        rule = _RULES.get(family(node), _Run._unknown)
        return rule(self, node, args, kwargs)

    # ---- what a rule records

    def _tie(self, left: Tensor, right: Tensor) -> None:
        self.labels.ties.append((left, right.expand_as(left)))

    def _pin(self, labels: Iterable[Tensor], node: Node, reason: str) -> None:
        for each in labels:
            self.labels.pins.append(Pin(each.unique(), operator_name(node), layer_of(node), reason))

    def _tie_or_pin(self, left: Tensor | None, right: Tensor | None, node: Node, reason: str) -> None:
        if left is not None and right is not None:
            self._tie(left, right)
        else:
            self._pin([side for side in (left, right) if side is not None], node, reason)

    # ---- rules, one for each family of operators

    def _unknown(self, node: Node, args: tuple, kwargs: dict) -> Any:
        self._pin(_fields((args, kwargs)), node, f"operator {operator_name(node)} has no rule")
        return _blank(node)

    def _identity(self, node: Node, args: tuple, kwargs: dict) -> Any:
        return args[0]

    def _pointwise(self, node: Node, args: tuple, kwargs: dict) -> Any:
        shape = node.meta["val"].shape
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
        merged: dict[int, Tensor] = {}
        for dim in range(-1, -len(shape) - 1, -1):
            present = [(v, v.fields.get(dim + len(v.shape))) for v in operands if -dim <= len(v.shape)]
            labels = [label for _, label in present if label is not None]
            if not labels:
                continue
            for other in labels[1:]:
                self._tie(labels[0], other)
            merged[dim + len(shape)] = labels[0]
            if any(label is None and v.shape[dim] > 1 for v, label in present):
                self._pin(labels[:1], node, "is combined element by element with a tensor of fixed size")
        return Value(shape, merged)

    def _move(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        if not isinstance(value, Value) or not value.fields:
            return _blank(node)
        rest = map_arg(node.args[1:], self.known.__getitem__)
        if any(leaf is UNKNOWN or depends(leaf) for leaf in tree_leaves(rest)):
            return self._unknown(node, args, kwargs)
        results = [functional(node)(along(labels, dim, value.shape), *rest) for dim, labels in value.fields.items()]
        fake = node.meta["val"]
        if isinstance(fake, Tensor):
            return self._gather(node, results, fake)
        self._split(node, value)
        return [self._gather(node, [result[i] for result in results], part) for i, part in enumerate(fake)]

    def _gather(self, node: Node, results: list[Tensor], fake: Tensor) -> Value:
        """The labels of a moved value; where one dimension became two, what stands in line is tied together."""
        fields: dict[int, Tensor] = {}
        for result in map(restride, results):
            varying = [dim for dim in range(result.dim()) if result.stride(dim) != 0 and result.shape[dim] > 1]
            if not varying:
                self._pin([result.flatten()[:1]], node, "is used alone, outside its group")
                continue
            inner = varying[-1]
            labels = result.movedim(inner, -1).reshape(-1, result.shape[inner])
            labels = labels.unique(dim=0) if len(varying) > 1 else labels[:1]
            for other in labels[1:]:
                self._tie(labels[0], other)
            if operator_name(node) in ("view", "reshape", "unflatten") and _in_ones(node, inner):
                self._pin([labels[0]], node, "is cut into blocks of one channel, of which the code knows the number")
            if inner in fields:
                self._tie(fields[inner], labels[0])
            fields[inner] = labels[0]
        return Value(fake.shape, fields)

    def _split(self, node: Node, value: Value) -> None:
        """A channel dimension cut into parts: sizes written in the network's code cannot follow a removal."""
        parts = node.meta["val"]
        cut = [d for d in value.fields if parts[0].dim() == len(value.shape) and parts[0].shape[d] != value.shape[d]]
        for labels in (value.fields[dim] for dim in cut):
            if operator_name(node) == "chunk" and len({tuple(part.shape) for part in parts}) == 1:
                sides = (labels.reshape(len(parts), -1),)
                self.labels.blocks.append(Blocks(sides, layer_of(node), "is cut into equal chunks", counted=True))
            else:
                self._pin([labels], node, "is split at positions written in the network's code")

    def _positions(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value, fake = args[0], node.meta["val"]
        whole = operator_name(node) in ("slice", "narrow") and fake.shape == value.shape
        dims = set() if whole else _dims_with_positions(node, len(value.shape))
        self._pin([f for d, f in value.fields.items() if d in dims], node, "is read at positions the code names")
        return self._move(node, args, kwargs)

    def _cast(self, node: Node, args: tuple, kwargs: dict) -> Any:
        return args[0]

    def _prelu(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value, slope = args[:2]
        if len(slope.shape) and slope.shape[0] > 1:
            self._tie_or_pin(value.fields.get(1), slope.fields.get(0), node, "scales an input of fixed size")
        return value

    def _glu(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % len(value.shape)
        fields = dict(value.fields)
        if dim in fields:
            halves = fields[dim].reshape(2, -1)
            self._tie(*halves)
            self.labels.blocks.append(Blocks((halves,), layer_of(node), "is cut into equal chunks", counted=True))
            fields[dim] = halves[0]
        return Value(node.meta["val"].shape, fields)

    def _pad(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value, fake = args[0], node.meta["val"]
        fields: dict[int, Tensor] = {}
        for dim, labels in value.fields.items():
            before, after = _padding_of(node, dim, len(value.shape))
            filled = len(args) < 3 or args[2] == "constant" or not isinstance(args[2], str)
            if min(before, after) < 0 or ((before or after) and not filled):
                return self._unknown(node, args, kwargs)
            fields[dim] = torch.full((fake.shape[dim],), PINNED)
            fields[dim][before : before + len(labels)] = labels
        return Value(fake.shape, fields)

    def _cat(self, node: Node, args: tuple, kwargs: dict) -> Any:
        parts: list[Value] = args[0]
        shape = node.meta["val"].shape
        along_dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(shape)
        fields: dict[int, Tensor] = {}
        if any(along_dim in part.fields for part in parts):
            blanks = [torch.full((part.shape[along_dim],), PINNED) for part in parts]
            fields[along_dim] = torch.cat([p.fields.get(along_dim, b) for p, b in zip(parts, blanks, strict=True)])
        for dim in set().union(*(part.fields for part in parts)) - {along_dim}:
            labels = [part.fields.get(dim) for part in parts]
            for other in labels[1:]:
                self._tie_or_pin(labels[0], other, node, "is joined to a tensor of fixed size")
            fields[dim] = next(label for label in labels if label is not None)
        return Value(shape, fields)

    def _resample(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        fixed = {dim: labels for dim, labels in value.fields.items() if dim > 1}
        self._pin(fixed.values(), node, "is pooled or resampled over")
        channel = {dim: labels for dim, labels in value.fields.items() if dim <= 1}
        return tree_map(lambda fake: Value(fake.shape, channel), node.meta["val"])

    def _reduce(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value, fake = args[0], node.meta["val"]
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = range(len(value.shape)) if dims is None or isinstance(dims, bool) or dims == [] else dims
        reduced = {dim % len(value.shape) for dim in ([dims] if isinstance(dims, int) else dims)}
        self._pin([f for d, f in value.fields.items() if d in reduced], node, "is summed over")
        keep = fake.dim() == len(value.shape)
        moved = {d: d if keep else d - sum(r < d for r in reduced) for d in value.fields if d not in reduced}
        return Value(fake.shape, {moved[d]: value.fields[d] for d in moved})

    def _softmax(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        dim = (args[1] if len(args) > 1 else kwargs["dim"]) % len(value.shape)
        self._pin([f for d, f in value.fields.items() if d == dim], node, "is normalised by softmax")
        return Value(value.shape, {d: f for d, f in value.fields.items() if d != dim})

    def _batch_norm(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        for other in args[1:5]:
            if isinstance(other, Value):
                self._tie_or_pin(value.fields.get(1), other.fields.get(0), node, "is normalised with a fixed input")
        return value

    def _contraction(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value, weight = args[:2]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        channel, groups = contraction_channel(node), contraction_groups(node)
        columns, rows = value.fields.get(channel), weight.fields.get(0)
        self._pin([labels for d, labels in weight.fields.items() if d > 1], node, WINDOW)
        if groups == 1:
            self._tie_or_pin(columns, weight.fields.get(1), node, "reads an input of fixed size")
        elif node.args[1] not in self.trace.names:
            sides = [side for side in (columns, rows) if side is not None]
            self._pin(sides, node, "is in a grouped convolution whose weight is computed")
        elif weight.shape[1] == 1:
            wide = columns.repeat_interleave(weight.shape[0] // groups) if columns is not None else None
            self._tie_or_pin(wide, rows, node, "is a depthwise convolution of an input of fixed size")
        else:
            self._pin([weight.fields[1]], node, WINDOW)
            self._grouped(node, columns, rows, groups)
        if isinstance(bias, Value) and bias.fields:
            self._tie_or_pin(rows, bias.fields.get(0), node, "has rows of fixed size")
        passed = {d: f for d, f in value.fields.items() if d != channel and operator_name(node) == "linear"}
        self._pin([f for d, f in value.fields.items() if d != channel and d not in passed], node, "is convolved over")
        self.labels.contractions.append(Contraction(node, rows, columns))
        return Value(node.meta["val"].shape, passed | ({channel: rows} if rows is not None else {}))

    def _grouped(self, node: Node, columns: Tensor | None, rows: Tensor | None, groups: int) -> None:
        weight: Any = node.args[1]
        # The weight's second dimension is a position inside the group, not a channel: surgery selects it per group.
        if columns is None or rows is None:
            sides = [side for side in (columns, rows) if side is not None]
            self._pin(sides, node, "is in a grouped convolution with an input of fixed size")
            return
        for other in self.labels.contractions:  # a weight used twice has one set of columns, which has no axis here
            if self.trace.names.get(other.weight) == self.trace.names[weight] and other.columns is not None:
                self._tie(columns, other.columns)
        sides = (columns.reshape(groups, -1), rows.reshape(groups, -1))
        self.labels.blocks.append(Blocks(sides, layer_of(node), "is in a grouped convolution"))


_RULES: dict[str, Callable[[_Run, Node, tuple, dict], Any]] = {
    "identity": _Run._identity,
    "pointwise": _Run._pointwise,
    "product": _Run._pointwise,
    "movement": _Run._move,
    "positions": _Run._positions,
    "cast": _Run._cast,
    "prelu": _Run._prelu,
    "glu": _Run._glu,
    "pad": _Run._pad,
    "cat": _Run._cat,
    "pooling": _Run._resample,
    "reduction": _Run._reduce,
    "softmax": _Run._softmax,
    "batch_norm": _Run._batch_norm,
    "contraction": _Run._contraction,
}


def _fields(values: Any) -> list[Tensor]:
    leaves = tree_leaves(values, is_leaf=lambda leaf: isinstance(leaf, Value))
    return [labels for leaf in leaves if isinstance(leaf, Value) for labels in leaf.fields.values()]


def _blank(node: Node) -> Any:
    return tree_map(lambda fake: Value(fake.shape) if isinstance(fake, Tensor) else fake, node.meta.get("val"))


def _in_ones(node: Node, dim: int) -> bool:
    """Whether a reshape put a dimension of size 1 behind ``dim`` and before others (blocks of a channel shuffle)."""
    shape, before = node.meta["val"].shape, node.all_input_nodes[0].meta["val"].shape
    behind = shape[dim + 1 :]
    return len(shape) > len(before) and len(behind) > 1 and behind[0] == 1 and behind.numel() > 1


def _padding_of(node: Node, dim: int, rank: int) -> tuple[int, int]:
    pads: Any = node.args[1]
    position = 2 * (rank - 1 - dim)
    return (pads[position], pads[position + 1]) if position < len(pads) else (0, 0)


def _dims_with_positions(node: Node, rank: int) -> set[int]:
    """The dimensions along which ``node`` names positions."""
    named: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if operator_name(node) == "index":
        return {dim for dim, index in enumerate(named) if index is not None}
    if operator_name(node) == "roll":
        named = node.args[2] if len(node.args) > 2 else list(range(rank))
    return {dim % rank for dim in (named if isinstance(named, (list, tuple)) else [named])}
