"""Channels beside others: concatenation, padding, gated linear units."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.constant_values import tidy
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.labels import PINNED, Blocks, Labelling
from lightning_fold.structure.operators import compact, functional, restride
from lightning_fold.structure.rules.heads import heads_dim, inner_dim
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value


def _label_cat(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    parts: list[Value] = args[0]
    shape = node.meta["val"].shape
    along_dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(shape)
    wide: tuple[Tensor, ...] = ()
    if any(part.wide for part in parts):
        if node in run.around and _in_same_heads(parts, along_dim):
            wide = (_joined_heads(run, parts, along_dim),)
        else:
            (parts,), _ = run.without_heads((parts,), {})
    fields: dict[int, Tensor] = {}
    if any(along_dim in part.fields for part in parts):
        blanks = [torch.full((part.shape[along_dim],), PINNED) for part in parts]
        fields[along_dim] = torch.cat([p.fields.get(along_dim, b) for p, b in zip(parts, blanks, strict=True)])
    for dim in set().union(*(part.fields for part in parts)) - {along_dim}:
        fields[dim] = _tied_parts(run, node, parts, dim)
    return Value(shape, fields, wide)


def _label_stack(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    parts: list[Value] = args[0]
    shape = node.meta["val"].shape
    new = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % len(shape)
    lifted = [
        Value(
            torch.Size((*part.shape[:new], 1, *part.shape[new:])),
            {dim + (dim >= new): labels for dim, labels in part.fields.items()},
            tuple(wide.unsqueeze(new) for wide in part.wide),
        )
        for part in parts
    ]
    return _label_cat(run, node, (lifted, new), {})


def _in_same_heads(parts: list[Value], dim: int) -> bool:
    """Whether all ``parts`` have channels in the same heads, to be joined over ``dim``."""
    if any(len(part.wide) != 1 or inner_dim(part.wide[0]) in part.fields for part in parts):
        return False
    shapes = {(*wide.shape[:dim], *wide.shape[dim + 1 :]) for part in parts for wide in part.wide}
    return len(shapes) == 1 and heads_dim(parts[0].wide[0]) != dim


def _joined_heads(run: Labelling, parts: list[Value], dim: int) -> Tensor:
    wides = [part.wide[0] for part in parts]
    if dim == inner_dim(wides[0]) or all(part.shape[dim] == 1 for part in parts):
        return compact(restride(torch.cat(wides, dim)))
    for wide in wides[1:]:
        run.tie(wides[0], wide)
    return wides[0]


def _tied_parts(run: Labelling, node: Node, parts: list[Value], dim: int) -> Tensor:
    labels = [part.fields.get(dim) for part in parts]
    for other in labels[1:]:
        run.tie_or_pin(labels[0], other, node, "is joined to a tensor of fixed size")
    return next(label for label in labels if label is not None)


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
    "cat": Rule(_label_cat, _known_joined, reads_heads=True),
    "stack": Rule(_label_stack, _known_joined, reads_heads=True),
    "pad": Rule(_label_pad, _known_joined),
    "glu": Rule(_label_glu),
}
