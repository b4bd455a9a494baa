"""Channels beside others: concatenation, padding, gated linear units."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.known import tidy
from lightning_fold.structure.labels import PINNED, Blocks, Labelling, Value
from lightning_fold.structure.operators import functional
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.trace import layer_of


def _label_cat(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
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
            run.tie_or_pin(labels[0], other, node, "is joined to a tensor of fixed size")
        fields[dim] = next(label for label in labels if label is not None)
    return Value(shape, fields)


def _label_pad(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    value, fake = args[0], node.meta["val"]
    fields: dict[int, Tensor] = {}
    for dim, labels in value.fields.items():
        before, after = _padding_of(node, dim, len(value.shape))
        filled = len(args) < 3 or args[2] == "constant" or not isinstance(args[2], str)
        if min(before, after) < 0 or ((before or after) and not filled):
            return run.unknown(node, args, kwargs)
        fields[dim] = torch.full((fake.shape[dim],), PINNED)
        fields[dim][before : before + len(labels)] = labels
    return Value(fake.shape, fields)


def _padding_of(node: Node, dim: int, rank: int) -> tuple[int, int]:
    pads: Any = node.args[1]
    position = 2 * (rank - 1 - dim)
    return (pads[position], pads[position + 1]) if position < len(pads) else (0, 0)


def _label_glu(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    value: Value = args[0]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % len(value.shape)
    fields = dict(value.fields)
    if dim in fields:
        halves = fields[dim].reshape(2, -1)
        run.tie(*halves)
        run.labels.blocks.append(Blocks((halves,), layer_of(node), "is cut into equal chunks", counted=True))
        fields[dim] = halves[0]
    return Value(node.meta["val"].shape, fields)


def _known_joined(node: Node, args: tuple, kwargs: dict) -> Any:
    return tree_map(tidy, functional(node)(*args, **kwargs))


RULES = {
    "cat": Rule(_label_cat, _known_joined),
    "pad": Rule(_label_pad, _known_joined),
    "glu": Rule(_label_glu),
}
