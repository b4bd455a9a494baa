"""Products of two values: attention, and matrix products written by hand."""

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_fold.structure.constant_values import unknown
from lightning_fold.structure.labels import Contraction, HeadUse, LabelRecorder, Product
from lightning_fold.structure.operators.nodes import (
    argument,
    compact,
    family,
    operands,
    operator_name,
    restride,
    softmax_over,
)
from lightning_fold.structure.rules.contraction import is_contraction, known_contraction, label_contraction
from lightning_fold.structure.rules.heads import by_head, fix_heads, heads_dim, join_heads
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value, with_last


def _label_attention(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    query, key, value, *rest = args
    if not len(query.shape) == len(key.shape) == len(value.shape):
        return run.unknown(node, *run.without_heads(args, kwargs))
    queries, keys, values = (_last(run, node, operand) for operand in (query, key, value))
    keys = _repeated(keys, key.shape, query.shape, queries)
    values = _repeated(values, value.shape, query.shape)
    _product(run, node, queries, keys, given=values, scaled=kwargs.get("scale") is None)
    mask = rest[0] if rest else kwargs.get("attn_mask")
    scores = _mask(run, node, mask, len(query.shape)) if isinstance(mask, Value) else None
    _weigh(run, node, scores, values, argument(node, 3, "attn_mask", None), (query.shape, queries))
    return with_last(node.meta["val"].shape, values)


def _mask(run: LabelRecorder, node: Node, mask: Value, rank: int) -> Value:
    """A mask over tokens, in the rank of the queries; only its heads can be removed."""
    lifted = rank - len(mask.shape)
    fields = {dim + lifted: labels for dim, labels in mask.labels.items()}
    fixed = [labels for dim, labels in fields.items() if dim >= rank - 2]
    run.pin([*fixed, *mask.head_labels], node, "is a mask over tokens")
    return Value(torch.Size((1,) * lifted + tuple(mask.shape)), {d: f for d, f in fields.items() if d < rank - 2})


def _known_attention(node: Node, args: tuple, kwargs: dict) -> Any:
    """Every row of weights sums to 1, unless a mask hides all tokens from it; known finite masks cannot do that."""
    query, _, value = args[:3]
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    masked = mask is not None and not (mask.is_floating_point() and bool(compact(mask).isfinite().all()))
    if kwargs.get("enable_gqa"):
        value = restride(value.repeat_interleave(query.shape[-3] // value.shape[-3], -3))
    return unknown(node) if masked else _mixed(node, value)


def _label_matmul(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    weight = run.constants[operands(node, node.args, node.kwargs)[1]]
    left, right = operands(node, args, kwargs)[:2]
    if is_contraction(node, weight) or len(left.shape) != len(right.shape) or len(left.shape) < 3:
        return label_contraction(run, node, *run.without_heads(args, kwargs))
    rank = len(left.shape)
    scores = Value(left.shape, {d: f for d, f in left.labels.items() if d < rank - 2})
    left = Value(left.shape, {d: f for d, f in left.labels.items() if d >= rank - 2}, left.head_labels)
    rows = left.labels.get(rank - 2)
    run.pin([rows] if rows is not None else [], node, "is multiplied with another value")
    flipped = Value(
        torch.Size((*right.shape[:-2], right.shape[-1], right.shape[-2])),
        {2 * rank - 3 - d if d >= rank - 2 else d: f for d, f in right.labels.items()},
        tuple(over_heads.transpose(-1, -2) for over_heads in right.head_labels),
    )
    shape = node.meta["val"].shape
    values = _repeated(_last(run, node, right, contracted=rank - 2), right.shape, shape)
    queries = _last(run, node, left)
    keys = _repeated(_last(run, node, flipped, contracted=rank - 2), right.shape, shape, queries)
    _weigh(run, node, scores, values, operands(node, node.args, node.kwargs)[0])
    multiplied = queries is not None and keys is not None and queries.shape == keys.shape
    dim = heads_dim(queries) if multiplied and queries is not None else None
    if dim is None or queries is None:
        _product(run, node, queries, keys)
        return with_last(shape, values)
    heads = run.fresh(shape[dim])
    join_heads(run, node, by_head(queries), heads[:, None])
    _product(run, node, queries, keys, given=heads[:, None])
    return Value(shape, {dim: heads})


def _known_matmul(node: Node, args: tuple, kwargs: dict) -> Any:
    if is_contraction(node, operands(node, args, kwargs)[1]):
        return known_contraction(node, args, kwargs)
    mixes = operator_name(node) in ("matmul", "bmm") and softmax_over(node.args[0])
    return _mixed(node, args[1]) if mixes else unknown(node)


def _last(run: LabelRecorder, node: Node, value: Value, contracted: int = -1) -> Tensor | None:
    """The labels along the last dimension of ``value``; labels of other dimensions are pinned.

    Args:
        run: the run over the graph.
        node: the operator that reads ``value``.
        value: the operand.
        contracted: a dimension that is read separately.
    """
    rank = len(value.shape)
    plain = [value.labels[rank - 1].reshape(*[1] * (rank - 1), -1)] if rank - 1 in value.labels else []
    last = plain + [over_heads for over_heads in value.head_labels if over_heads.shape[-1] > 1]
    apart = [
        over_heads
        for over_heads in value.head_labels
        if contracted >= 0 and over_heads.shape[-1] == 1 and over_heads.shape[contracted] > 1
    ]
    used = {id(over_heads) for over_heads in last + apart}
    rest = [f for d, f in value.labels.items() if d not in (rank - 1, contracted)]
    rest += [over_heads for over_heads in value.head_labels if id(over_heads) not in used]
    run.pin(rest, node, "is multiplied with another value")
    for other in last[1:]:
        run.pin([last[0], other], node, "is multiplied with another value")
    return last[0] if last else None


def _repeated(labels: Tensor | None, shape: torch.Size, goal: torch.Size, other: Tensor | None = None) -> Tensor | None:
    """``labels`` of a value of ``shape``, repeated for the heads that read the same one (grouped queries)."""
    if labels is None:
        return None
    for dim in range(len(goal) - 2):
        varies = labels.shape[dim] > 1 or (other is not None and other.shape[dim] > 1)
        if shape[dim] != goal[dim] and varies:
            labels = labels.repeat_interleave(goal[dim] // shape[dim], dim)
    return labels


def _product(
    run: LabelRecorder,
    node: Node,
    left: Tensor | None,
    right: Tensor | None,
    *,
    given: Tensor | None = None,
    scaled: bool = False,
) -> None:
    """Record a product of two values that is summed over their last dimension."""
    if left is None or right is None or left.shape != right.shape:
        run.pin([side for side in (left, right) if side is not None], node, "is multiplied with a fixed size")
        return
    run.tie(left, right)
    writer = _writer(run, node.args[0], left) if scaled else None
    if scaled and (writer is None or bool(torch.isin(left, right).any())):
        fix_heads(run, node, left, "is divided by the root of its size")
    heads = None if given is None else given.reshape(-1, given.shape[-1])
    run.labels.products.append(Product(node, left, heads, writer))


def _weigh(
    run: LabelRecorder,
    node: Node,
    scores: Value | None,
    values: Tensor | None,
    source: Node | None,
    queries: tuple[torch.Size, Tensor | None] | None = None,
) -> None:
    """Let ``scores`` (..., heads, tokens, tokens) weigh ``values``; a head is removed with all that computes it."""
    dim = None if values is None else heads_dim(values)
    fields = {} if scores is None else dict(scores.labels)
    taken = fields.pop(dim, None) if dim is not None else None
    run.pin(fields.values(), node, "is multiplied with another value")
    if values is None or values.numel() == values.shape[-1]:
        return
    sides = [by_head(values)]
    if taken is not None and source is not None:
        sides.append(taken[:, None])
        run.labels.head_uses.append(HeadUse(node, source, sides[1], sides[0]))
    together = dim is not None and (scores is None or taken is not None or scores.shape[dim] == 1)
    if queries is not None and dim is not None:
        over_heads = queries[1]
        cut = over_heads is not None and heads_dim(over_heads) == dim
        sides += [by_head(over_heads)] if over_heads is not None and cut else []
        together = together and (cut or queries[0][dim] == 1)
    join_heads(run, node, *sides, together=together)


def _writer(run: LabelRecorder, node: Any, labels: Tensor) -> Contraction | None:
    """The contraction with the rows ``labels``, if only movement and scaling by numbers follow it."""
    while isinstance(node, Node) and node.op == "call_function" and family(node) not in ("contraction", "matmul"):
        numbers = family(node) in ("pointwise", "product") and len(node.all_input_nodes) == 1
        if not numbers and node.target is not getitem and family(node) not in ("movement", "positions", "identity"):
            return None
        if family(node) == "pointwise" and operator_name(node) != "div":
            return None
        node = node.args[0]
    found = next((c for c in run.labels.contractions if c.node is node), None)
    names = run.trace.names
    if found is None or found.rows is None or not bool(torch.isin(labels, found.rows).all()):
        return None
    tensors = [found.weight] + ([found.bias] if found.bias is not None else [])
    return found if all(tensor in names and len(tensor.users) == 1 for tensor in tensors) else None


def _mixed(node: Node, value: Tensor) -> Tensor:
    """The mean of ``value`` (..., tokens, channels) with weights that sum to 1: known where all tokens are equal."""
    shape = node.meta["val"].shape
    value = compact(value)
    first = value.narrow(-2, 0, 1)
    same = torch.where((value == first).all(-2, keepdim=True), first, torch.nan)
    return restride(same.expand(shape)) if same.dim() == len(shape) else unknown(node)


RULES = {
    "attention": Rule(_label_attention, _known_attention, reads_heads=True),
    "matmul": Rule(_label_matmul, _known_matmul, reads_heads=True),
}
