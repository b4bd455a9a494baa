"""Data movement: executed unchanged on labels and on constants."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.structure.constant_values import UNKNOWN, along, depends, tidy
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.labels import Blocks, LabelRecorder
from lightning_fold.structure.operators.nodes import (
    argument,
    compact,
    functional,
    moving,
    operator_name,
    restride,
    shape_operands,
)
from lightning_fold.structure.rules.heads import (
    HEAD_COUNTS,
    HEAD_SIZES,
    HEAD_TOTALS,
    RESHAPES,
    WIDTHS,
    by_head,
    cut_into_heads,
    expand_over_heads,
    fix_heads,
    follows,
    inner_dim,
    join_heads,
    keep_slices,
)
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value, blank


def label_movement(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    """Run the operator on the labels along every dimension that holds channels."""
    value: Value = args[0]
    if not isinstance(value, Value) or not (value.labels or value.head_labels):
        blanks = blank(node)
        return Value(blanks.shape, expand_over_heads(run, node)) if isinstance(blanks, Value) else blanks
    if node not in run.around:
        (value,), _ = run.without_heads((value,), {})
    rest = _shaped_like(node) or map_arg(node.args[1:], run.constants.__getitem__)
    if any(leaf is UNKNOWN or depends(leaf) for leaf in tree_leaves(rest)):
        return run.unknown(node, args, kwargs)
    given = [along(labels, dim, value.shape) for dim, labels in value.labels.items()]
    given += [over_heads.expand(value.shape) for over_heads in value.head_labels]
    results = [moving(node)(labels, *rest) for labels in given]
    fake = node.meta["val"]
    if isinstance(fake, Tensor):
        moved = _gather(run, node, results, fake, heads=bool(value.head_labels))
        repeated = {} if value.head_labels else expand_over_heads(run, node)
        return Value(moved.shape, repeated | moved.labels, moved.head_labels)
    _split(run, node, value)
    return [_gather(run, node, [result[i] for result in results], part) for i, part in enumerate(fake)]


def _shaped_like(node: Node) -> tuple[Tensor, ...]:
    """Stand-ins for the operands of which an operator reads only the shape."""
    others = shape_operands(node)
    return tuple(torch.empty(()).expand(other.meta["val"].shape) for other in others)


def _gather(run: LabelRecorder, node: Node, results: list[Tensor], fake: Tensor, *, heads: bool = False) -> Value:
    """The labels of a moved value; if one dimension became two, labels at the same inner position are tied."""
    fields: dict[int, Tensor] = {}
    over_heads: list[Tensor] = []
    for result in map(restride, results):
        varying = [dim for dim in range(result.dim()) if result.stride(dim) != 0 and result.shape[dim] > 1]
        if len(varying) > 1 and node in run.around:
            over_heads.append(compact(result))
            cut_into_heads(run, node, result, varying[-1])
            continue
        if not varying:
            run.pin([result.flatten()[:1]], node, "is used alone, outside its group")
            continue
        inner = varying[-1]
        labels = result.movedim(inner, -1).reshape(-1, result.shape[inner])
        labels = labels.unique(dim=0) if len(varying) > 1 else labels[:1]
        for other in labels[1:]:
            run.tie(labels[0], other)
        if operator_name(node) in ("view", "reshape", "unflatten") and _in_ones(node, inner):
            run.pin([labels[0]], node, "is cut into a number of one-channel blocks that the code fixes")
        if inner in fields:
            run.tie(fields[inner], labels[0])
        fields[inner] = labels[0]
        if node in run.around and operator_name(node) in RESHAPES:  # of all heads together, or of a single one
            asked = HEAD_TOTALS if heads else HEAD_SIZES + HEAD_TOTALS + HEAD_COUNTS
            if not follows(run, node, labels[:1], inner, asked, "channels"):
                run.pin([labels], node, "is cut into heads of a size that the code fixes")
        elif operator_name(node) in RESHAPES:
            follows(run, node, labels[:1], inner, WIDTHS, "channels")
    return Value(fake.shape, fields, tuple(over_heads))


def _in_ones(node: Node, dim: int) -> bool:
    """Whether a reshape put a dimension of size 1 between ``dim`` and others (blocks of a channel shuffle)."""
    shape, before = node.meta["val"].shape, node.all_input_nodes[0].meta["val"].shape
    behind = shape[dim + 1 :]
    return len(shape) > len(before) and len(behind) > 1 and behind[0] == 1 and behind.numel() > 1


def _split(run: LabelRecorder, node: Node, value: Value) -> None:
    """Record channels cut into parts: sizes written in the network's code cannot follow a removal."""
    parts, name = node.meta["val"], operator_name(node)
    even = name == "chunk" and len({tuple(part.shape) for part in parts}) == 1
    cut = _split_dim(node, len(value.shape))
    if cut in value.labels and name != "unbind":
        labels = value.labels[cut]
        if even:
            sides = (labels.reshape(len(parts), -1),)
            run.labels.blocks.append(Blocks(sides, layer_of(node), "is cut into equal chunks", fixed_count=True))
        else:
            run.pin([labels], node, "is split at positions written in the network's code")
    for over_heads in value.head_labels:
        if over_heads.shape[cut] == 1:
            continue
        if cut != inner_dim(over_heads):
            keep_slices(run, node, over_heads, cut)
        elif even:
            chunks = [by_head(chunk) for chunk in over_heads.chunk(len(parts), cut)]
            join_heads(run, node, *chunks)
            run.labels.blocks.append(Blocks((torch.cat(chunks),), layer_of(node), "is cut into equal chunks"))
        else:
            fix_heads(run, node, over_heads, "is split at positions written in the network's code")


def _split_dim(node: Node, rank: int) -> int:
    """The dimension along which ``node`` splits a value."""
    position = 1 if operator_name(node) == "unbind" else 2
    return argument(node, position, "dim", 0) % rank


def _label_positions(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value, fake = args[0], node.meta["val"]
    whole = operator_name(node) in ("slice", "narrow") and fake.shape == value.shape
    dims = set() if whole else _dims_with_positions(node, len(value.shape))
    reason = "is read at positions the code names"
    run.pin([f for d, f in value.labels.items() if d in dims], node, reason)
    for over_heads in value.head_labels:
        for dim in dims:
            if over_heads.shape[dim] > 1 and dim != inner_dim(over_heads):
                keep_slices(run, node, over_heads, dim)
            elif over_heads.shape[dim] > 1:
                fix_heads(run, node, over_heads, reason)
    return label_movement(run, node, args, kwargs)


def _dims_with_positions(node: Node, rank: int) -> set[int]:
    """The dimensions along which ``node`` names positions."""
    named: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if operator_name(node) == "index":
        return {dim for dim, index in enumerate(named) if index is not None}
    if operator_name(node) == "roll":
        named = node.args[2] if len(node.args) > 2 else list(range(rank))
    return {dim % rank for dim in (named if isinstance(named, (list, tuple)) else [named])}


def _known_movement(node: Node, args: tuple, kwargs: dict) -> Any:
    return tree_map(tidy, functional(node)(*args, **kwargs))


RULES = {
    "movement": Rule(label_movement, _known_movement, reads_heads=True),
    "positions": Rule(_label_positions, _known_movement, reads_heads=True),
}
