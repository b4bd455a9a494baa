"""Linear layers, convolutions, and embedding tables."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.structure.constant_values import along, channel_constants, depends, unknown
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.labels import WINDOW, Blocks, Contraction, LabelRecorder
from lightning_fold.structure.operators.contractions import (
    contraction_channel,
    contraction_groups,
    is_padded,
    is_transposed,
    oriented,
)
from lightning_fold.structure.operators.nodes import family, operands, operator_name
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value, blank, labels_in


def is_contraction(node: Node, weight: Any) -> bool:
    """Whether ``node`` contracts the last dimension, or the channels, of a value with the known matrix ``weight``."""
    if family(node) == "contraction":
        return not operator_name(node).startswith("conv_transpose") or contraction_groups(node) == 1
    plain = operator_name(node) != "addmm" or (node.args[0].meta["val"].dim() == 1 and not node.kwargs)  # pyright: ignore
    return family(node) == "matmul" and plain and weight.dim() == 2 and not depends(weight)


def label_contraction(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    """Tie the columns to the channels read; return the rows."""
    value, weight, bias = operands(node, args, kwargs)
    if not is_contraction(node, run.constants[operands(node, node.args, node.kwargs)[1]]):
        if family(node) != "contraction":
            return run.unknown(node, args, kwargs)
        run.pin(labels_in((args, kwargs)), node, "is transposed and has groups, which has no rule")
        return blank(node)
    channel, groups = contraction_channel(node), contraction_groups(node)
    row_dim = int(is_transposed(node))
    columns, rows = value.labels.get(channel), weight.labels.get(row_dim)
    run.pin([labels for d, labels in weight.labels.items() if d > 1], node, WINDOW)
    if groups == 1:
        computed = weight.labels.get(1 - row_dim) is None
        reason = "has a weight that is computed from all channels" if computed else "reads an input of fixed size"
        run.tie_or_pin(columns, weight.labels.get(1 - row_dim), node, reason)
    elif node.args[1] not in run.trace.names:
        sides = [side for side in (columns, rows, weight.labels.get(1)) if side is not None]
        run.pin(sides, node, "is in a grouped convolution whose weight is computed")
    elif weight.shape[1] == 1:
        over_heads = columns.repeat_interleave(weight.shape[0] // groups) if columns is not None else None
        run.tie_or_pin(over_heads, rows, node, "is a depthwise convolution of an input of fixed size")
    else:
        run.pin([weight.labels[1]], node, WINDOW)
        _grouped(run, node, columns, rows, groups)
    if isinstance(bias, Value) and bias.labels:
        run.tie_or_pin(rows, bias.labels.get(0), node, "has rows of fixed size")
    if isinstance(run.trace.modules.get(layer_of(node)), nn.MultiheadAttention):
        sides = [side for side in (columns, rows) if side is not None]
        run.pin(sides, node, "has the width of its nn.MultiheadAttention, which its heads share")
    passed = {d: f for d, f in value.labels.items() if d != channel and "conv" not in operator_name(node)}
    run.pin([f for d, f in value.labels.items() if d != channel and d not in passed], node, "is convolved over")
    run.labels.contractions.append(Contraction(node, rows, columns))
    return Value(node.meta["val"].shape, passed | ({channel: rows} if rows is not None else {}))


def _grouped(run: LabelRecorder, node: Node, columns: Tensor | None, rows: Tensor | None, groups: int) -> None:
    weight: Any = node.args[1]
    # The weight's second dimension is a position inside the group, not a channel: surgery selects it per group.
    if columns is None or rows is None:
        sides = [side for side in (columns, rows) if side is not None]
        run.pin(sides, node, "is in a grouped convolution with an input of fixed size")
        return
    for other in run.labels.contractions:  # a weight used twice has one set of columns, without an axis here
        if run.trace.names.get(other.weight) == run.trace.names[weight] and other.columns is not None:
            run.tie(columns, other.columns)
    sides = (columns.reshape(groups, -1), rows.reshape(groups, -1))
    run.labels.blocks.append(Blocks(sides, layer_of(node), "is in a grouped convolution"))


def known_contraction(node: Node, args: tuple, kwargs: dict) -> Any:
    """Known where every non-zero weight meets a known value."""
    value, weight, bias = operands(node, args, kwargs)
    if depends(weight) or depends(bias) or not is_contraction(node, weight):
        return unknown(node)
    weight = oriented(node, weight)
    channel = contraction_channel(node)
    matrix = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    nonzero = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    given = channel_constants(value, channel)
    if given is None:
        return unknown(node)
    needed = given.isnan() | ((given != 0) & is_padded(node))
    groups = contraction_groups(node)
    given, needed = given.nan_to_num().reshape(groups, -1), needed.reshape(groups, -1)
    rows = weight.shape[0] // groups
    unreached = ~(nonzero.reshape(groups, rows, -1) & needed[:, None]).any(2)
    result = (matrix.reshape(groups, rows, -1) * given[:, None]).sum(2)
    result = torch.where(unreached, result, torch.nan).flatten()
    if bias is not None:
        result = result + bias
    return along(result, channel, node.meta["val"].shape)


def _label_bilinear(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    """Every row reads products of two inputs."""
    left, right, weight = args[:3]
    bias = args[3] if len(args) > 3 else kwargs.get("bias")
    for dim, value in ((1, left), (2, right)):
        last = value.labels.get(len(value.shape) - 1)
        run.tie_or_pin(last, weight.labels.get(dim), node, "reads an input of fixed size")
        run.pin(
            [f for d, f in value.labels.items() if d < len(value.shape) - 1],
            node,
            "is read position by position",
        )
    rows = weight.labels.get(0)
    if isinstance(bias, Value) and bias.labels:
        run.tie_or_pin(rows, bias.labels.get(0), node, "has rows of fixed size")
    shape = node.meta["val"].shape
    return Value(shape, {len(shape) - 1: rows} if rows is not None else {})


def _known_bilinear(node: Node, args: tuple, kwargs: dict) -> Any:
    weight, bias = args[2], args[3] if len(args) > 3 else kwargs.get("bias")
    if depends(weight) or depends(bias):
        return unknown(node)
    rows = torch.where((weight == 0).flatten(1).all(1), 0.0, torch.nan).to(weight)
    shape = node.meta["val"].shape
    return along(rows if bias is None else rows + bias, len(shape) - 1, shape)


def _label_embedding(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    weight: Value = args[0]
    shape = node.meta["val"].shape
    run.pin([labels for dim, labels in weight.labels.items() if dim == 0], node, "is a row that inputs select")
    return Value(shape, {len(shape) - 1: weight.labels[1]} if 1 in weight.labels else {})


def _known_embedding(node: Node, args: tuple, kwargs: dict) -> Any:
    shape = node.meta["val"].shape
    columns = channel_constants(args[0], 1)
    return unknown(node) if columns is None else along(columns, len(shape) - 1, shape)


RULES = {
    "contraction": Rule(label_contraction, known_contraction),
    "bilinear": Rule(_label_bilinear, _known_bilinear),
    "embedding": Rule(_label_embedding, _known_embedding),
}
