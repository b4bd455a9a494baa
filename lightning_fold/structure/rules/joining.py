"""Joined channels: concatenation, padding, gated linear units."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.constant_values import tidy
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.labels import PINNED, Blocks, LabelRecorder
from lightning_fold.structure.operators.nodes import compact, functional, restride
from lightning_fold.structure.rules.heads import heads_dim, inner_dim
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value


def _label_cat(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    parts: list[Value] = args[0]
    shape = node.meta["val"].shape
    along_dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(shape)
    over_heads: tuple[Tensor, ...] = ()
    if any(part.head_labels for part in parts):
        if node in run.around and _in_same_heads(parts, along_dim):
            over_heads = (_joined_heads(run, parts, along_dim),)
        else:
            (parts,), _ = run.without_heads((parts,), {})
    fields: dict[int, Tensor] = {}
    if any(along_dim in part.labels for part in parts):
        blanks = [torch.full((part.shape[along_dim],), PINNED) for part in parts]
        fields[along_dim] = torch.cat([p.labels.get(along_dim, b) for p, b in zip(parts, blanks, strict=True)])
    for dim in set().union(*(part.labels for part in parts)) - {along_dim}:
        fields[dim] = _tied_parts(run, node, parts, dim)
    return Value(shape, fields, over_heads)


def _label_stack(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    parts: list[Value] = args[0]
    shape = node.meta["val"].shape
    new = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(shape)
    lifted = [
        Value(
            torch.Size((*part.shape[:new], 1, *part.shape[new:])),
            {dim + (dim >= new): labels for dim, labels in part.labels.items()},
            tuple(over_heads.unsqueeze(new) for over_heads in part.head_labels),
        )
        for part in parts
    ]
    return _label_cat(run, node, (lifted, new), {})


def _in_same_heads(parts: list[Value], dim: int) -> bool:
    """Whether all ``parts`` have channels in the same heads and can be joined over ``dim``."""
    if any(len(part.head_labels) != 1 or inner_dim(part.head_labels[0]) in part.labels for part in parts):
        return False
    shapes = {
        (*over_heads.shape[:dim], *over_heads.shape[dim + 1 :]) for part in parts for over_heads in part.head_labels
    }
    return len(shapes) == 1 and heads_dim(parts[0].head_labels[0]) != dim


def _joined_heads(run: LabelRecorder, parts: list[Value], dim: int) -> Tensor:
    wides = [part.head_labels[0] for part in parts]
    if dim == inner_dim(wides[0]) or all(part.shape[dim] == 1 for part in parts):
        return compact(restride(torch.cat(wides, dim)))
    for over_heads in wides[1:]:
        run.tie(wides[0], over_heads)
    return wides[0]


def _tied_parts(run: LabelRecorder, node: Node, parts: list[Value], dim: int) -> Tensor:
    labels = [part.labels.get(dim) for part in parts]
    for other in labels[1:]:
        run.tie_or_pin(labels[0], other, node, "is joined to a tensor of fixed size")
    return next(label for label in labels if label is not None)


def _label_pad(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value, fake = args[0], node.meta["val"]
    fields: dict[int, Tensor] = {}
    for dim, labels in value.labels.items():
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


def _label_glu(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value: Value = args[0]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % len(value.shape)
    fields = dict(value.labels)
    if dim in fields:
        halves = fields[dim].reshape(2, -1)
        run.tie(*halves)
        run.labels.blocks.append(Blocks((halves,), layer_of(node), "is cut into equal chunks", fixed_count=True))
        fields[dim] = halves[0]
    return Value(node.meta["val"].shape, fields)


def _known_joined(node: Node, args: tuple, kwargs: dict) -> Any:
    return tree_map(tidy, functional(node)(*args, **kwargs))


RULES = {
    "cat": Rule(_label_cat, _known_joined, reads_heads=True),
    "stack": Rule(_label_stack, _known_joined, reads_heads=True),
    "pad": Rule(_label_pad, _known_joined),
    "glu": Rule(_label_glu),
}
