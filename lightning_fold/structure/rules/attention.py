"""Products of two values: attention, and matrix products written by hand."""

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_fold.structure.known import unknown
from lightning_fold.structure.labels import Contraction, Labelling, Product, Value, labels_in, with_last
from lightning_fold.structure.operators import compact, family, operands, operator_name, restride, softmax_over
from lightning_fold.structure.rules.contraction import is_contraction, known_contraction, label_contraction
from lightning_fold.structure.rules.rule import Rule


def _label_attention(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    query, key, value, *rest = args
    if kwargs.get("enable_gqa") or not len(query.shape) == len(key.shape) == len(value.shape):
        return run.unknown(node, *run.without_heads(args, kwargs))
    run.pin(labels_in((rest, kwargs)), node, "is a mask over tokens")
    passed = [_last(run, node, operand) for operand in (query, key, value)]
    scaled = kwargs.get("scale") is None
    _product(run, node, passed[0], passed[1], scaled=scaled)
    return with_last(node.meta["val"].shape, passed[2])


def _known_attention(node: Node, args: tuple, kwargs: dict) -> Any:
    """Every row of weights sums to 1, unless a mask hides all tokens from it: known finite masks cannot."""
    value: Tensor = args[2]
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    masked = mask is not None and not (mask.is_floating_point() and bool(compact(mask).isfinite().all()))
    return unknown(node) if masked or kwargs.get("enable_gqa") else _mixed(node, value)


def _label_matmul(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    weight = run.known[operands(node, node.args, node.kwargs)[1]]
    left, right = operands(node, args, kwargs)[:2]
    if is_contraction(node, weight) or len(left.shape) != len(right.shape) or len(left.shape) < 3:
        return label_contraction(run, node, *run.without_heads(args, kwargs))
    rank = len(left.shape)
    rows = left.fields.get(rank - 2)
    run.pin([rows] if rows is not None else [], node, "is multiplied with another value")
    flipped = Value(
        torch.Size((*right.shape[:-2], right.shape[-1], right.shape[-2])),
        {2 * rank - 3 - d if d >= rank - 2 else d: f for d, f in right.fields.items()},
        tuple(wide.transpose(-1, -2) for wide in right.wide),
    )
    columns = _last(run, node, right, contracted=rank - 2)
    _product(run, node, _last(run, node, left), _last(run, node, flipped, contracted=rank - 2))
    return with_last(node.meta["val"].shape, columns)


def _known_matmul(node: Node, args: tuple, kwargs: dict) -> Any:
    if is_contraction(node, operands(node, args, kwargs)[1]):
        return known_contraction(node, args, kwargs)
    return (
        _mixed(node, args[1])
        if operator_name(node) in ("matmul", "bmm") and softmax_over(node.args[0])
        else unknown(node)
    )


def _last(run: Labelling, node: Node, value: Value, contracted: int = -1) -> Tensor | None:
    """The labels along the last dimension of ``value``; what other dimensions hold is pinned.

    Args:
        run: the run over the graph.
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
    run.pin(rest, node, "is multiplied with another value")
    for other in last[1:]:
        run.pin([last[0], other], node, "is multiplied with another value")
    return last[0] if last else None


def _product(run: Labelling, node: Node, left: Tensor | None, right: Tensor | None, *, scaled: bool = False) -> None:
    """Two values multiplied and summed over their last dimension."""
    if left is None or right is None or left.shape != right.shape:
        run.pin([side for side in (left, right) if side is not None], node, "is multiplied with a fixed size")
        return
    run.tie(left, right)
    writer = _writer(run, node.args[0], left) if scaled else None
    if scaled and (writer is None or bool(torch.isin(left, right).any())):
        run.pin([left], node, "is divided by the root of its size")
    run.labels.products.append(Product(node, left, writer))


def _writer(run: Labelling, node: Any, labels: Tensor) -> Contraction | None:
    """The contraction whose rows ``labels`` are, if nothing but movement and numbers stands between."""
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
    """The mean of ``value`` (..., tokens, channels) with weights that sum to 1: known where all tokens are alike."""
    shape = node.meta["val"].shape
    value = compact(value)
    first = value.narrow(-2, 0, 1)
    same = torch.where((value == first).all(-2, keepdim=True), first, torch.nan)
    return restride(same.expand(shape)) if same.dim() == len(shape) else unknown(node)


RULES = {
    "attention": Rule(_label_attention, _known_attention, reads_heads=True),
    "matmul": Rule(_label_matmul, _known_matmul, reads_heads=True),
}
