"""Element-wise operators: activations, sums, products, casts, PReLU."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.structure.constant_values import UNKNOWN, unknown
from lightning_fold.structure.labels import HeadUse, LabelRecorder
from lightning_fold.structure.operators.nodes import compact, functional, is_aten, operator_name, restride
from lightning_fold.structure.rules.heads import by_head, fix_heads, heads_dim, inner_dim, join_heads
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value, blank


def _label_pointwise(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    shape = node.meta["val"].shape
    values = [_lifted(leaf, len(shape)) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
    over_heads = [over_heads for value in values for over_heads in value.head_labels]
    merged: dict[int, Tensor] = {}
    for dim in reversed(range(len(shape))):
        labels = [value.labels[dim] for value in values if dim in value.labels]
        if not labels:
            continue
        for other in labels[1:]:
            run.tie(labels[0], other)
        if over_heads and heads_dim(over_heads[0]) == dim:
            join_heads(run, node, by_head(over_heads[0]), labels[0][:, None])
            run.labels.head_uses += _head_uses(node, labels[0], by_head(over_heads[0]))
            continue
        if not over_heads or dim != inner_dim(over_heads[0]):
            merged[dim] = labels[0]
        if any(dim not in value.labels and value.shape[dim] > 1 for value in values):
            run.pin(labels[:1], node, "is combined element by element with a tensor of fixed size")
    return Value(shape, merged, _merged_heads(run, node, values))


def _lifted(value: Value, rank: int) -> Value:
    """``value`` with dimensions of size 1 in front, as broadcasting sees it."""
    more = rank - len(value.shape)
    over_heads = tuple(over_heads.reshape((1,) * more + over_heads.shape) for over_heads in value.head_labels)
    return Value(
        torch.Size((1,) * more + tuple(value.shape)),
        {d + more: f for d, f in value.labels.items()},
        over_heads,
    )


def _head_uses(node: Node, heads: Tensor, channels: Tensor) -> list[HeadUse]:
    """Record that one number for each head is combined with that head's channels."""
    return [HeadUse(node, source, heads[:, None], channels) for source in node.all_input_nodes]


def _merged_heads(run: LabelRecorder, node: Node, values: list[Value]) -> tuple[Tensor, ...]:
    """The labels over heads of an element-wise operator's result."""
    given = [over_heads for value in values for over_heads in value.head_labels]
    if not given:
        return ()
    first, reason = given[0], "is combined element by element with a tensor of fixed size"
    inner = inner_dim(first)
    for value in values:
        over = {dim for dim, size in enumerate(value.shape) if size > 1 and first.shape[dim] > 1} - value.labels.keys()
        if value.head_labels or not over | (value.labels.keys() & {inner}):
            continue
        if over <= {inner}:
            fix_heads(run, node, first, reason)
        else:
            run.pin(given, node, reason)
    if all(over_heads.shape == first.shape for over_heads in given):
        for over_heads in given[1:]:
            run.tie(first, over_heads)
    else:
        run.pin(given, node, reason)
    return (first,)


def _known_pointwise(node: Node, args: tuple, kwargs: dict) -> Any:
    # Some operators do not propagate NaN (hardswish, comparisons), so known and unknown are computed separately.
    if not node.meta["val"].is_floating_point():
        return unknown(node)
    leaves = [compact(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    depends = torch.stack(torch.broadcast_tensors(*(leaf != leaf for leaf in leaves))).any(0)
    narrow = compact if is_aten(node.target) else _whole  # operators from elsewhere may not broadcast
    args, kwargs = tree_map(lambda leaf: _filled(narrow(leaf)) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    result = functional(node)(*args, **kwargs)
    result = result if is_aten(node.target) else restride(result)
    return torch.where(depends, torch.nan, result).expand(node.meta["val"].shape)


def _whole(value: Tensor) -> Tensor:
    return value


def _filled(value: Tensor) -> Tensor:
    return value.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf) if value.is_floating_point() else value


def _known_product(node: Node, args: tuple, kwargs: dict) -> Any:
    product = _known_pointwise(node, args, kwargs)
    if product is UNKNOWN:
        return product
    for factor in args[:2]:
        zero = compact(factor) == 0 if isinstance(factor, Tensor) else torch.tensor(factor == 0)
        product = torch.where(zero, 0.0, product)
    return restride(product)


def _label_new(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    return blank(node)


def _known_new(node: Node, args: tuple, kwargs: dict) -> Any:
    return unknown(node) if operator_name(node) == "new_empty" else functional(node)(*args, **kwargs)


def _label_cast(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    return args[0]


def _known_cast(node: Node, args: tuple, kwargs: dict) -> Any:
    fake = node.meta["val"]
    both = fake.is_floating_point() and args[0].is_floating_point()
    return args[0].to(dtype=fake.dtype, device=fake.device) if both else unknown(node)


def _label_prelu(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value, slope = args[:2]
    if len(slope.shape) and slope.shape[0] > 1:
        run.tie_or_pin(value.labels.get(1), slope.labels.get(0), node, "scales an input of fixed size")
    return value


def _known_prelu(node: Node, args: tuple, kwargs: dict) -> Any:
    value, slope = compact(args[0]), args[1]
    slope = slope.reshape(1, -1, *[1] * (value.dim() - 2)) if value.dim() > 1 else slope
    return restride(torch.where(value > 0, value, value * slope).expand(args[0].shape))


def _label_identity(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    return args[0]


def _known_identity(node: Node, args: tuple, kwargs: dict) -> Any:
    return args[0]


RULES = {
    "identity": Rule(_label_identity, _known_identity, reads_heads=True),
    "pointwise": Rule(_label_pointwise, _known_pointwise, reads_heads=True),
    "product": Rule(_label_pointwise, _known_product, reads_heads=True),
    "new": Rule(_label_new, _known_new, reads_heads=True),
    "cast": Rule(_label_cast, _known_cast, reads_heads=True),
    "prelu": Rule(_label_prelu, _known_prelu),
}
