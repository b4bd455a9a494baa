"""Operators over positions: pooling, resampling, reductions, softmax."""

from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.constant_values import UNKNOWN, along, channel_constants, unknown
from lightning_fold.structure.labels import HeadUse, LabelRecorder
from lightning_fold.structure.operators.nodes import argument, functional, operator_name, restride
from lightning_fold.structure.rules.heads import by_head, fix_heads, heads_dim, inner_dim, join_heads
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value


def _label_resample(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value: Value = args[0]
    fixed = {dim: labels for dim, labels in value.labels.items() if dim > 1}
    run.pin(fixed.values(), node, "is pooled or resampled over")
    channel = {dim: labels for dim, labels in value.labels.items() if dim <= 1}
    return tree_map(lambda fake: Value(fake.shape, channel), node.meta["val"])


# Largest rounding error of a mean of equal numbers, in units of the type's precision.
_ROUNDINGS = 64


def _known_pooling(node: Node, args: tuple, kwargs: dict) -> Any:
    given = channel_constants(args[0], 1)
    if given is None:
        return unknown(node)
    pooled = functional(node)(along(given.nan_to_num(), 1, args[0].shape), *args[1:], **kwargs)
    pooled, *indices = pooled if isinstance(pooled, tuple) else (pooled,)
    # A mean of equal numbers is that number up to rounding; with zeros padded into it, it is not.
    rtol = torch.finfo(given.dtype).eps * _ROUNDINGS
    same = pooled.flatten(2).transpose(0, 1).flatten(1).isclose(given[:, None], rtol=rtol, atol=0.0).all(1)
    pooled = along(torch.where(same, given, torch.nan), 1, pooled.shape)
    return pooled if not indices else (pooled, UNKNOWN)


def _label_reduce(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value, fake = args[0], node.meta["val"]
    reduced = _reduced_dims(node, len(value.shape))
    if value.head_labels:
        alone = len(value.head_labels) == 1 and reduced == {inner_dim(value.head_labels[0])} == {len(value.shape) - 1}
        if alone and not reduced & value.labels.keys() and node in run.around:
            return _reduced_heads(run, node, value)
        (value,), _ = run.without_heads((value,), {})
    run.pin([f for d, f in value.labels.items() if d in reduced], node, "is summed over")
    keep = fake.dim() == len(value.shape)
    moved = {d: d if keep else d - sum(r < d for r in reduced) for d in value.labels if d not in reduced}
    return Value(fake.shape, {moved[d]: value.labels[d] for d in moved})


def _reduced_dims(node: Node, rank: int) -> set[int]:
    """The dimensions over which a reduction runs."""
    position = 2 if operator_name(node) == "linalg_vector_norm" else 1
    dims: Any = argument(node, position, "dim", None)
    if dims is None or isinstance(dims, bool) or dims == []:
        return set(range(rank))
    return {dim % rank for dim in ([dims] if isinstance(dims, int) else dims)}


def _reduced_heads(run: LabelRecorder, node: Node, value: Value) -> Value:
    """One number for each head, reduced over all its channels."""
    over_heads = value.head_labels[0]
    fix_heads(run, node, over_heads, "is summed over")
    dim, fake = heads_dim(over_heads), node.meta["val"]
    if dim is None:
        run.pin([over_heads], node, "is summed over")
        return Value(fake.shape, value.labels)
    heads = run.fresh(over_heads.shape[dim])
    join_heads(run, node, by_head(over_heads), heads[:, None])
    run.labels.head_uses.append(HeadUse(node, node.all_input_nodes[0], by_head(over_heads), heads[:, None]))
    return Value(fake.shape, value.labels | {dim: heads})


def _known_reduction(node: Node, args: tuple, kwargs: dict) -> Any:
    # Only values that are constant along the reduced dimensions are known, and only if the result does not depend on
    # the number of elements. A sum depends on it, and so on the size of the image, unless all elements are zero.
    first, name = args[0], operator_name(node)
    if name not in ("mean", "amax", "amin", "sum", "linalg_vector_norm"):
        return unknown(node)
    for dim in _reduced_dims(node, first.dim()):
        start = first.narrow(dim, 0, 1)
        first = torch.where((first == start).all(dim, keepdim=True), start, torch.nan)
    if name in ("sum", "linalg_vector_norm"):
        first = torch.where(first == 0, first, torch.nan)
    return restride(first.reshape(node.meta["val"].shape))


def _label_softmax(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value: Value = args[0]
    dim = (args[1] if len(args) > 1 else kwargs["dim"]) % len(value.shape)
    run.pin([f for d, f in value.labels.items() if d == dim], node, "is normalised by softmax")
    return Value(value.shape, {d: f for d, f in value.labels.items() if d != dim})


RULES = {
    "pooling": Rule(_label_resample, _known_pooling),
    "reduction": Rule(_label_reduce, _known_reduction, reads_heads=True),
    "softmax": Rule(_label_softmax),
}
