"""Channels cut into attention heads, and the code's attributes that repeat their sizes.

Channels over heads span several dimensions: (..., heads, ..., channels of a head), see ``Value.head_labels``.
A head can be removed as a whole if everything that attention multiplies it with loses it too.
"""

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.structure.constant_values import Constants
from lightning_fold.structure.graph.trace import Trace, layer_of
from lightning_fold.structure.labels import Blocks, LabelRecorder, Labels, Size
from lightning_fold.structure.operators.nodes import compact, family, operands, operator_name
from lightning_fold.structure.rules.contraction import is_contraction

# Python attributes that repeat the size of one attention head, of all, and the number of heads.
HEAD_SIZES = ("head_dim", "attention_head_size", "dim_head")
HEAD_TOTALS = ("attn_dim", "all_head_size", "inner_dim")
HEAD_COUNTS = (
    *("num_heads", "num_kv_heads", "num_attention_heads", "num_key_value_heads"),
    *("n_heads", "n_head", "nhead", "heads"),
)
# How many query heads read one head of keys and values.
HEAD_REPEATS = ("num_key_value_groups", "n_rep")
# The number of channels that a layer writes, if its code reads it from an attribute.
WIDTHS = ("nf",)

RESHAPES = ("view", "reshape", "_unsafe_view", "unflatten", "flatten")
# Families that may appear between attention and the contractions around it.
_AROUND = {
    *("movement", "positions", "identity", "cast", "pointwise", "product"),
    *("layer_norm", "softmax", "cat", "stack", "reduction"),
}


def around_attention(trace: Trace, known: Constants) -> set[Node]:
    """The nodes that only move or scale the operands or results of attention: there, channels may be in heads."""
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


def heads_dim(over_heads: Tensor) -> int | None:
    """The dimension of the heads, if channels span exactly one dimension besides that of the channels of a head."""
    varying = [dim for dim in range(over_heads.dim()) if over_heads.shape[dim] > 1]
    return varying[0] if len(varying) == 2 else None


def inner_dim(over_heads: Tensor) -> int:
    """The dimension of the channels of a head."""
    return max(dim for dim in range(over_heads.dim()) if over_heads.shape[dim] > 1)


def by_head(over_heads: Tensor) -> Tensor:
    """(heads, channels of a head) the labels ``over_heads``."""
    inner = inner_dim(over_heads)
    return over_heads.movedim(inner, -1).reshape(-1, over_heads.shape[inner])


def join_heads(run: LabelRecorder, node: Node, *sides: Tensor, together: bool = True) -> None:
    """Remove a head on all ``sides``, (heads, channels) each, or on none; without ``together``, no head is removed."""
    reason = "is cut into heads, which are removed as a whole or not at all"
    run.labels.blocks.append(Blocks(sides, layer_of(node), reason, fixed_count=not together))


def fix_heads(run: LabelRecorder, node: Node, over_heads: Tensor, reason: str) -> None:
    """Remove the channels of a head together or not at all; those of a single head are kept."""
    if over_heads.numel() == over_heads.shape[inner_dim(over_heads)]:
        run.pin([over_heads], node, reason)
    run.labels.blocks.append(Blocks((by_head(over_heads),), layer_of(node), reason, fixed_size=True))


def keep_slices(run: LabelRecorder, node: Node, over_heads: Tensor, dim: int) -> None:
    """Keep all slices along ``dim``, whose number the code fixes, with the same number of channels each."""
    slices = over_heads.movedim(dim, 0).reshape(over_heads.shape[dim], -1)
    reason = "is cut into a number of heads or parts that the code fixes"
    run.labels.blocks.append(Blocks((slices,), layer_of(node), reason, fixed_count=True))


def cut_into_heads(run: LabelRecorder, node: Node, result: Tensor, inner: int) -> None:
    """Record channels cut into heads: all heads keep the same number, and the code must follow the new sizes."""
    if operator_name(node) not in RESHAPES:
        return
    over_heads = compact(result)
    blocks = by_head(over_heads)
    run.labels.blocks.append(Blocks((blocks,), layer_of(node), "is cut into heads of equal size"))
    for dim in range(inner):
        slices = over_heads.movedim(dim, 0).reshape(over_heads.shape[dim], -1)
        if len(slices) > 1 and not follows(run, node, slices, dim, HEAD_COUNTS, "blocks"):
            keep_slices(run, node, over_heads, dim)
    if not follows(run, node, blocks, inner, HEAD_SIZES, "width"):
        fix_heads(run, node, over_heads, "is cut into heads of a size that the code fixes")


def follows(run: LabelRecorder, node: Node, labels: Tensor, dim: int, attributes: tuple[str, ...], counts: str) -> bool:
    """Whether the size of ``dim`` in a reshape follows the number of channels ``labels`` that are kept.

    It does if the code does not name the size, or reads it from an attribute; that attribute is recorded.
    """
    named = _named_size(node, dim)
    if named is None:
        return True
    module = run.trace.modules.get(layer_of(node))
    sizes = {name: getattr(module, name, None) for name in attributes}
    found = {name: size for name, size in sizes.items() if isinstance(size, int) and _gives(size, named, name)}
    if not run.ask_attributes or isinstance(module, nn.MultiheadAttention):
        return False
    if counts == "blocks" and _repeats(node, named, [getattr(module, name, None) for name in HEAD_REPEATS]):
        return True
    if not found:
        return False
    run.labels.sizes += [Size(layer_of(node), name, labels, counts, size) for name, size in found.items()]
    return True


def _repeats(node: Node, named: int, times: list[Any]) -> bool:
    """Whether a reshape joins the heads of its operand with their repetitions, whose number is an attribute."""
    source = node.all_input_nodes[0]
    repeated = operator_name(source) == "expand" and any(isinstance(n, int) and n > 1 for n in times)
    heads = source.all_input_nodes[0].meta["val"].shape if repeated else ()
    return any(isinstance(n, int) and n * size == named for n in times for size in heads[1:2])


def expand_over_heads(run: LabelRecorder, node: Node) -> dict[int, Tensor]:
    """Labels of the dimensions that an ``expand`` repeats once for each head, counted by an attribute of the code."""
    module = run.trace.modules.get(layer_of(node))
    before, after = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    if operator_name(node) != "expand" or node not in run.around or not run.ask_attributes:
        return {}
    old = (1,) * (len(after) - len(before)) + tuple(before)
    fields: dict[int, Tensor] = {}
    for dim, (size, repeated) in enumerate(zip(old, after, strict=True)):
        sizes = {name: getattr(module, name, None) for name in HEAD_COUNTS}
        found = [name for name, value in sizes.items() if isinstance(value, int) and value == repeated]
        if dim > 0 and size == 1 and repeated > 1 and found:
            fields[dim] = run.fresh(repeated)
            run.labels.sizes += [Size(layer_of(node), name, fields[dim][None], "channels", repeated) for name in found]
    return fields


def agree_on_sizes(labels: Labels) -> None:
    """Keep the same number of channels in all reshapes that read the size of a head from one attribute."""
    asked: dict[tuple[str, str], list[Size]] = {}
    for size in labels.sizes:
        if size.counts == "width":
            asked.setdefault((size.layer, size.attribute), []).append(size)
    for (layer, name), sizes in asked.items():
        widths = {size.labels.shape[1] for size in sizes}
        if len(sizes) > 1 and len(widths) == 1:
            blocks = torch.cat([size.labels for size in sizes])
            labels.blocks.append(Blocks((blocks,), layer, f"is cut into heads of size {name}"))


def tie_whole_heads(labels: Labels) -> None:
    """Tie the channels of a head that can only be removed together: they become one channel of the network.

    Blocks that must keep the size of such a head are tied as well; sides that are removed together become one.
    """
    for blocks in labels.blocks:
        if blocks.fixed_size:
            labels.ties += [_as_one(side) for side in blocks.sides]
    cut = (
        [b for b in labels.blocks if not (b.fixed_count or b.shared_statistics)]
        if any(b.fixed_size for b in labels.blocks)
        else []
    )
    before = -1
    while cut and before != len(labels.ties):
        before, group_of = len(labels.ties), labels.groups()
        for blocks in cut:
            whole = [(group_of[side] == group_of[side[:, :1]]).all(1) for side in blocks.sides]
            for side, rows in zip(blocks.sides, whole, strict=True):
                if bool(rows.any() and not rows.all()):
                    labels.ties.append(_as_one(side))
            first = blocks.sides[0][:, 0]
            apart = [side[:, 0] for side in blocks.sides if not torch.equal(group_of[side[:, 0]], group_of[first])]
            if apart and all(bool(rows.all()) for rows in whole):
                labels.ties += [(first, other) for other in apart]


def _as_one(side: Tensor) -> tuple[Tensor, Tensor]:
    return side, side[:, :1].expand_as(side)


def _named_size(node: Node, dim: int) -> int | None:
    """The size of ``dim`` if the code names it; ``None`` if it follows from the other sizes."""
    if operator_name(node) == "flatten":
        return None
    unflattened = operator_name(node) == "unflatten"
    sizes: Any = node.args[2 if unflattened else 1]
    position = dim - _cut_dim(node) if unflattened else dim
    return sizes[position] if 0 <= position < len(sizes) and sizes[position] != -1 else None


def _cut_dim(node: Node) -> int:
    """The dimension that an unflatten cuts."""
    dim: Any = node.args[1]
    return dim % node.all_input_nodes[0].meta["val"].dim()


def _gives(size: int, named: int, attribute: str) -> bool:
    return size == named if attribute in HEAD_COUNTS else size > 1 and named % size == 0
