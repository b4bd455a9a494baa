"""Which channels belong together: the graph run forwards on labels.

Every index of every dimension of every parameter and buffer has a label. A value carries, for each of its dimensions
that holds channels, the labels of those channels. Element-wise operators tie the labels of their operands,
a contraction ties the labels it reads to its weight's columns and hands on the labels of its rows, data movement is
executed on the labels as it is. What an operator without a rule reads is pinned: it stays, and the report says why.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.layers import CompensatedNorm
from lightning_fold.structure.constants import (
    UNKNOWN,
    Values,
    along,
    contraction_channel,
    contraction_groups,
    depends,
    is_contraction,
)
from lightning_fold.structure.operators import (
    compact,
    family,
    functional,
    is_transposed,
    norm_affine,
    normalised_dims,
    operands,
    operator_name,
    restride,
)
from lightning_fold.structure.trace import Trace, interpret, layer_of

# Python attributes that repeat the size of one attention head, and of all.
HEAD_SIZES = ("head_dim", "attention_head_size", "dim_head")
HEAD_TOTALS = ("attn_dim", "all_head_size", "inner_dim")

_RESHAPES = ("view", "reshape", "_unsafe_view", "unflatten", "flatten")
# Families that read labels over heads, and those that may stand between attention and the contractions around it.
_READ_HEADS = {"movement", "positions", "identity", "cast", "pointwise", "product", "attention", "matmul"}
_AROUND = _READ_HEADS - {"attention", "matmul"} | {"layer_norm"}

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
    """A tensor of the graph: its shape, and the labels along each dimension that holds channels.

    ``wide`` holds the labels of channels that stand in several dimensions, as (head, channel of the head): each has
    as many dimensions as the value and size 1 where it does not vary.
    """

    shape: torch.Size
    fields: dict[int, Tensor] = field(default_factory=dict)
    wide: tuple[Tensor, ...] = ()


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
    """Channels in blocks that must keep equally many, ``(blocks, channels of a block)`` each.

    A grouped convolution has two sides, its inputs and its outputs; a block leaves on both sides or on none. With
    ``counted`` the network's code counts the blocks, so none can leave. With ``whole`` the channels of a block share
    statistics: an exact rewrite removes all of them or none, and ``layer`` is the GroupNorm that counts its blocks.
    """

    sides: tuple[Tensor, ...]
    layer: str
    reason: str
    counted: bool = False
    whole: bool = False


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
        channels: labels of the channels summed over, in the layout of the first operand, size 1 where not varying.
        writer: the contraction that writes the queries, where the operator scales by their number; else ``None``.
    """

    node: Node
    channels: Tensor
    writer: Contraction | None = None


@dataclass(frozen=True)
class Size:
    """A Python attribute of the module ``layer`` that counts the channels ``labels``, (blocks, channels of a block).

    It is the number of channels of each block, or of all blocks with ``total``, divided by ``share``.
    """

    layer: str
    attribute: str
    labels: Tensor
    total: bool
    share: int


@dataclass
class Labels:
    """What the run over the graph recorded."""

    axes: dict[tuple[str, int], Axis] = field(default_factory=dict)
    values: dict[Node, Any] = field(default_factory=dict)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    blocks: list[Blocks] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    count: int = 1


def label_channels(trace: Trace, known: Values, *, ask_attributes: bool = True) -> Labels:
    """Run ``trace`` on labels. ``known`` gives the index tensors that data movement reads."""
    return _Run(trace, known, ask_attributes).labels


class _Run:
    """The state of one run: the labels so far, and the values of the graph known to be constant."""

    def __init__(self, trace: Trace, known: Values, ask_attributes: bool) -> None:
        self.labels = Labels()
        self.ask_attributes = ask_attributes
        self.trace = trace
        self.known = known
        self.around = _around_attention(trace, known)
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
        if family(node) not in _READ_HEADS:
            args, kwargs = self._without_heads(args, kwargs)
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
        return Value(shape, merged, self._merged_heads(node, operands, shape))

    def _merged_heads(self, node: Node, operands: list[Value], shape: torch.Size) -> tuple[Tensor, ...]:
        """The labels over heads of an element-wise operator's result."""
        lifted = [wide.reshape((1,) * (len(shape) - wide.dim()) + wide.shape) for v in operands for wide in v.wide]
        if not lifted:
            return ()
        first, *others = lifted
        for value in operands:
            sizes = (1,) * (len(shape) - len(value.shape)) + tuple(value.shape)
            if not value.wide and any(size > 1 and first.shape[dim] > 1 for dim, size in enumerate(sizes)):
                others.append(torch.zeros(()))  # of fixed size
        if all(other.shape == first.shape for other in others):
            for other in others:
                self._tie(first, other)
        else:
            self._pin(lifted, node, "is combined element by element with a tensor of fixed size")
        return (first,)

    def _without_heads(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments of an operator that knows nothing of heads: channels in the same place of all are tied."""

        def collapse(value: Any) -> Any:
            if not isinstance(value, Value) or not value.wide:
                return value
            fields = dict(value.fields)
            for wide in value.wide:
                inner = max(dim for dim in range(wide.dim()) if wide.shape[dim] > 1)
                rows = wide.movedim(inner, -1).reshape(-1, wide.shape[inner])
                for other in rows[1:]:
                    self._tie(rows[0], other)
                fields[inner] = rows[0]
            return Value(value.shape, fields)

        return tree_map(collapse, (args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Value))

    def _move(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        if not isinstance(value, Value) or not (value.fields or value.wide):
            return _blank(node)
        if node not in self.around:
            (value,), _ = self._without_heads((value,), {})
        rest = map_arg(node.args[1:], self.known.__getitem__)
        if any(leaf is UNKNOWN or depends(leaf) for leaf in tree_leaves(rest)):
            return self._unknown(node, args, kwargs)
        given = [along(labels, dim, value.shape) for dim, labels in value.fields.items()]
        given += [wide.expand(value.shape) for wide in value.wide]
        results = [functional(node)(labels, *rest) for labels in given]
        fake = node.meta["val"]
        if isinstance(fake, Tensor):
            return self._gather(node, results, fake, heads=bool(value.wide))
        self._split(node, value)
        return [self._gather(node, [result[i] for result in results], part) for i, part in enumerate(fake)]

    def _gather(self, node: Node, results: list[Tensor], fake: Tensor, *, heads: bool = False) -> Value:
        """The labels of a moved value; where one dimension became two, what stands in line is tied together."""
        fields: dict[int, Tensor] = {}
        wide: list[Tensor] = []
        for result in map(restride, results):
            varying = [dim for dim in range(result.dim()) if result.stride(dim) != 0 and result.shape[dim] > 1]
            if len(varying) > 1 and node in self.around:
                wide.append(compact(result))
                self._heads(node, result, varying[-1])
                continue
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
            if node in self.around and operator_name(node) in _RESHAPES:  # of all heads together, or of a single one
                self._size(node, labels[:1], inner, HEAD_TOTALS if heads else HEAD_SIZES + HEAD_TOTALS, total=True)
        return Value(fake.shape, fields, tuple(wide))

    def _heads(self, node: Node, result: Tensor, inner: int) -> None:
        """Channels cut into heads: every head keeps equally many, and the code must follow."""
        if operator_name(node) not in _RESHAPES:
            return
        compacted = compact(result)
        blocks = compacted.movedim(inner, -1).reshape(-1, compacted.shape[inner])
        self.labels.blocks.append(Blocks((blocks,), layer_of(node), "is cut into heads of equal size", counted=True))
        self._size(node, blocks, inner, HEAD_SIZES, total=False)

    def _size(self, node: Node, labels: Tensor, inner: int, attributes: tuple[str, ...], *, total: bool) -> None:
        """Record which attribute gives the size that a reshape names; where none does, the size is fixed."""
        if operator_name(node) == "flatten":
            return
        unflattened = operator_name(node) == "unflatten"
        sizes: Any = node.args[2 if unflattened else 1]
        position = inner - _dim_of(node) if unflattened else inner
        if not 0 <= position < len(sizes):
            return
        named = sizes[position]
        if named == -1:
            return
        layer = layer_of(node)
        module = self.trace.modules.get(layer)
        found = {name: named // size for name in attributes if _divides(size := getattr(module, name, None), named)}
        if not found or not self.ask_attributes or isinstance(module, nn.MultiheadAttention):
            self._pin([labels], node, "is cut into heads of a size that the code knows")
            return
        self.labels.sizes += [Size(layer, name, labels, total, share) for name, share in found.items()]

    def _split(self, node: Node, value: Value) -> None:
        """A channel dimension cut into parts: sizes written in the network's code cannot follow a removal."""
        parts = node.meta["val"]
        cut = [d for d in value.fields if parts[0].dim() == len(value.shape) and parts[0].shape[d] != value.shape[d]]
        wide = [w for w in value.wide if parts[0].dim() == w.dim()]
        over = [
            (w, dim)
            for w in wide
            for dim in range(w.dim())
            if w.shape[dim] > 1 and parts[0].shape[dim] != value.shape[dim]
        ]
        for labels in [value.fields[dim] for dim in cut] + [w.movedim(dim, -1) for w, dim in over]:
            if operator_name(node) == "chunk" and len({tuple(part.shape) for part in parts}) == 1:
                sides = (labels.reshape(-1, labels.shape[-1] // len(parts)),)
                self.labels.blocks.append(Blocks(sides, layer_of(node), "is cut into equal chunks", counted=True))
            else:
                self._pin([labels], node, "is split at positions written in the network's code")

    def _positions(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value, fake = args[0], node.meta["val"]
        whole = operator_name(node) in ("slice", "narrow") and fake.shape == value.shape
        dims = set() if whole else _dims_with_positions(node, len(value.shape))
        named = [f for d, f in value.fields.items() if d in dims]
        named += [wide for wide in value.wide if len(value.shape) - 1 in dims and wide.shape[-1] > 1]
        self._pin(named, node, "is read at positions the code names")
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
        rest = _blank(node)
        return [value, *rest[1:]] if isinstance(rest, (list, tuple)) else value

    def _group_norm(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        channels, layer = value.fields.get(1), layer_of(node)
        self._pin([f for d, f in value.fields.items() if d > 1], node, "is normalised over")
        for tensor in norm_affine(node):
            if tensor is not None:
                other = _argument_value(node, args, kwargs, tensor).fields.get(0)
                self._tie_or_pin(channels, other, node, "is normalised with a fixed input")
        if channels is not None:
            blocks = channels.reshape(int(args[1]), -1)
            self.labels.norms.append(Norm(node, blocks, 1))
            if isinstance(self.trace.modules.get(layer), nn.GroupNorm):
                self.labels.blocks.append(Blocks((blocks,), layer, "shares its statistics with others", whole=True))
            else:
                self._pin([channels], node, "is normalised in groups of which the code knows the number")
        return Value(value.shape, {1: channels} if channels is not None else {})

    def _layer_norm(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value: Value = args[0]
        dims = normalised_dims(node)
        for tensor in norm_affine(node):
            fields = _argument_value(node, args, kwargs, tensor).fields if tensor is not None else {}
            for dim, labels in fields.items():
                self._tie_or_pin(value.fields.get(dims[dim]), labels, node, "is normalised with a fixed input")
        inside = [labels for dim, labels in value.fields.items() if dim in dims]
        alone = len(dims) == 1 and len(inside) == 1
        self.labels.norms.append(Norm(node, inside[0][None] if alone else None, dims[-1]))
        if not alone or not self._follows(node):
            self._pin(inside, node, "is normalised over a size that the code knows")
        return Value(value.shape, value.fields)

    def _follows(self, node: Node) -> bool:
        """Whether the module that runs a LayerNorm or RMSNorm takes its width from its own weight."""
        module = self.trace.modules.get(layer_of(node))
        weight, owner = norm_affine(node)[0], layer_of(node)
        named = self.trace.names.get(weight, "") if weight is not None else ""
        return named.rpartition(".")[0] == owner and (
            isinstance(module, CompensatedNorm) or (bool(named) and hasattr(module, "normalized_shape"))
        )

    def _attention(self, node: Node, args: tuple, kwargs: dict) -> Any:
        query, key, value, *rest = args
        if kwargs.get("enable_gqa") or not len(query.shape) == len(key.shape) == len(value.shape):
            return self._unknown(node, *self._without_heads(args, kwargs))
        self._pin(_fields((rest, kwargs)), node, "is a mask over tokens")
        passed = [self._last(node, operand) for operand in (query, key, value)]
        scaled = kwargs.get("scale") is None
        self._product(node, passed[0], passed[1], scaled=scaled)
        return _with_last(node.meta["val"].shape, passed[2])

    def _matmul(self, node: Node, args: tuple, kwargs: dict) -> Any:
        weight = self.known[operands(node, node.args, node.kwargs)[1]]
        left, right = operands(node, args, kwargs)[:2]
        if is_contraction(node, weight) or len(left.shape) != len(right.shape) or len(left.shape) < 3:
            return self._contraction(node, *self._without_heads(args, kwargs))
        rank = len(left.shape)
        rows = left.fields.get(rank - 2)
        self._pin([rows] if rows is not None else [], node, "is multiplied with another value")
        flipped = Value(
            torch.Size((*right.shape[:-2], right.shape[-1], right.shape[-2])),
            {2 * rank - 3 - d if d >= rank - 2 else d: f for d, f in right.fields.items()},
            tuple(wide.transpose(-1, -2) for wide in right.wide),
        )
        columns = self._last(node, right, contracted=rank - 2)
        self._product(node, self._last(node, left), self._last(node, flipped, contracted=rank - 2))
        return _with_last(node.meta["val"].shape, columns)

    def _last(self, node: Node, value: Value, contracted: int = -1) -> Tensor | None:
        """The labels along the last dimension of ``value``; what other dimensions hold is pinned.

        Args:
            node: the operator that reads ``value``.
            value: the operand.
            contracted: a dimension that is read apart.
        """
        rank = len(value.shape)
        plain = [value.fields[rank - 1].reshape(*[1] * (rank - 1), -1)] if rank - 1 in value.fields else []
        last = plain + [wide for wide in value.wide if wide.shape[-1] > 1]
        apart = [wide for wide in value.wide if contracted >= 0 and wide.shape[-1] == 1 and wide.shape[contracted] > 1]
        used = {id(wide) for wide in last + apart}
        rest = [f for d, f in value.fields.items() if d not in (rank - 1, contracted)]
        rest += [wide for wide in value.wide if id(wide) not in used]
        self._pin(rest, node, "is multiplied with another value")
        for other in last[1:]:
            self._pin([last[0], other], node, "is multiplied with another value")
        return last[0] if last else None

    def _product(self, node: Node, left: Tensor | None, right: Tensor | None, *, scaled: bool = False) -> None:
        """Two values multiplied and summed over their last dimension."""
        if left is None or right is None or left.shape != right.shape:
            self._pin([side for side in (left, right) if side is not None], node, "is multiplied with a fixed size")
            return
        self._tie(left, right)
        writer = self._writer(node.args[0], left) if scaled else None
        if scaled and (writer is None or bool(torch.isin(left, right).any())):
            self._pin([left], node, "is divided by the root of its size")
        self.labels.products.append(Product(node, left, writer))

    def _writer(self, node: Any, labels: Tensor) -> Contraction | None:
        """The contraction whose rows ``labels`` are, if nothing but movement and numbers stands between."""
        while isinstance(node, Node) and node.op == "call_function" and family(node) not in ("contraction", "matmul"):
            numbers = family(node) in ("pointwise", "product") and len(node.all_input_nodes) == 1
            if not numbers and node.target is not getitem and family(node) not in ("movement", "positions", "identity"):
                return None
            if family(node) == "pointwise" and operator_name(node) != "div":
                return None
            node = node.args[0]
        found = next((c for c in self.labels.contractions if c.node is node), None)
        names = self.trace.names
        if found is None or found.rows is None or not bool(torch.isin(labels, found.rows).all()):
            return None
        tensors = [found.weight] + ([found.bias] if found.bias is not None else [])
        return found if all(tensor in names and len(tensor.users) == 1 for tensor in tensors) else None

    def _embedding(self, node: Node, args: tuple, kwargs: dict) -> Any:
        weight: Value = args[0]
        shape = node.meta["val"].shape
        self._pin([labels for dim, labels in weight.fields.items() if dim == 0], node, "is a row that inputs name")
        return Value(shape, {len(shape) - 1: weight.fields[1]} if 1 in weight.fields else {})

    def _contraction(self, node: Node, args: tuple, kwargs: dict) -> Any:
        value, weight, bias = operands(node, args, kwargs)
        if not is_contraction(node, self.known[operands(node, node.args, node.kwargs)[1]]):
            return self._unknown(node, args, kwargs)
        channel, groups = contraction_channel(node), contraction_groups(node)
        row_dim = int(is_transposed(node))
        columns, rows = value.fields.get(channel), weight.fields.get(row_dim)
        self._pin([labels for d, labels in weight.fields.items() if d > 1], node, WINDOW)
        if groups == 1:
            self._tie_or_pin(columns, weight.fields.get(1 - row_dim), node, "reads an input of fixed size")
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
        if isinstance(self.trace.modules.get(layer_of(node)), nn.MultiheadAttention):
            sides = [side for side in (columns, rows) if side is not None]
            self._pin(sides, node, "has the width of its nn.MultiheadAttention, which its heads share")
        passed = {d: f for d, f in value.fields.items() if d != channel and "conv" not in operator_name(node)}
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
    "matmul": _Run._matmul,
    "attention": _Run._attention,
    "batch_norm": _Run._batch_norm,
    "instance_norm": _Run._batch_norm,
    "group_norm": _Run._group_norm,
    "layer_norm": _Run._layer_norm,
    "embedding": _Run._embedding,
    "contraction": _Run._contraction,
}


def _dim_of(node: Node) -> int:
    """The dimension that an unflatten cuts."""
    dim: Any = node.args[1]
    return dim % node.all_input_nodes[0].meta["val"].dim()


def _divides(size: Any, named: int) -> bool:
    return isinstance(size, int) and size > 1 and named % size == 0


def _fields(values: Any) -> list[Tensor]:
    leaves = tree_leaves(values, is_leaf=lambda leaf: isinstance(leaf, Value))
    return [labels for leaf in leaves if isinstance(leaf, Value) for labels in (*leaf.fields.values(), *leaf.wide)]


def _with_last(shape: torch.Size, labels: Tensor | None) -> Value:
    """A value with ``labels`` along its last dimension, and perhaps over heads."""
    if labels is None:
        return Value(shape)
    if labels.numel() == labels.shape[-1]:
        return Value(shape, {len(shape) - 1: labels.flatten()})
    return Value(shape, {}, (labels,))


def _around_attention(trace: Trace, known: Values) -> set[Node]:
    """The nodes that only move or scale what attention reads or gives: there, channels may stand in heads."""
    found: set[Node] = set()
    for node in trace.graph.nodes:
        if node.op != "call_function" or family(node) not in ("attention", "matmul"):
            continue
        if family(node) == "attention" or not is_contraction(node, known[operands(node, node.args, node.kwargs)[1]]):
            _spread(node, found, lambda n: list(n.all_input_nodes))
            _spread(node, found, lambda n: list(n.users))
    return found


def _spread(start: Node, found: set[Node], neighbours: Callable[[Node], list[Node]]) -> None:
    open_nodes, seen = neighbours(start), set()
    while open_nodes:
        node = open_nodes.pop()
        if node in seen or node.op != "call_function" or not (node.target is getitem or family(node) in _AROUND):
            continue
        seen.add(node)
        open_nodes += neighbours(node)
    found |= seen


def _blank(node: Node) -> Any:
    return tree_map(lambda fake: Value(fake.shape) if isinstance(fake, Tensor) else fake, node.meta.get("val"))


def _argument_value(node: Node, args: tuple, kwargs: dict, argument: Node) -> Value:
    """The value that an operator got for its argument ``argument``."""
    pairs = zip((*node.args, *node.kwargs.values()), (*args, *kwargs.values()), strict=True)
    return next(value for given, value in pairs if given is argument)


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
