"""Element by element: activations, sums, products, casts, PReLU."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.structure.known import UNKNOWN, unknown
from lightning_fold.structure.labels import Labelling, Value
from lightning_fold.structure.operators import compact, functional, restride
from lightning_fold.structure.rules.rule import Rule


def _label_pointwise(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    shape = node.meta["val"].shape
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
    merged: dict[int, Tensor] = {}
    for dim in range(-1, -len(shape) - 1, -1):
        present = [(v, v.fields.get(dim + len(v.shape))) for v in operands if -dim <= len(v.shape)]
        labels = [label for _, label in present if label is not None]
        if not labels:
            continue
        for other in labels[1:]:
            run.tie(labels[0], other)
        merged[dim + len(shape)] = labels[0]
        if any(label is None and v.shape[dim] > 1 for v, label in present):
            run.pin(labels[:1], node, "is combined element by element with a tensor of fixed size")
    return Value(shape, merged, _merged_heads(run, node, operands, shape))


def _merged_heads(run: Labelling, node: Node, operands: list[Value], shape: torch.Size) -> tuple[Tensor, ...]:
    """The labels over heads of an element-wise operator's result."""
    lifted = [wide.reshape((1,) * (len(shape) - wide.dim()) + wide.shape) for v in operands for wide in v.wide]
    if not lifted:
        return ()
    first, *others = lifted
    for value in operands:
        sizes = (1,) * (len(shape) - len(value.shape)) + tuple(value.shape)
        if not value.wide and any(size > 1 and first.shape[dim] > 1 for dim, size in enumerate(sizes)):
            others.append(torch.zeros(()))  # of fixed size
    if all(other.shape == first.shape for other in others):
        for other in others:
            run.tie(first, other)
    else:
        run.pin(lifted, node, "is combined element by element with a tensor of fixed size")
    return (first,)


def _known_pointwise(node: Node, args: tuple, kwargs: dict) -> Any:
    # Not every operator hands NaN on (hardswish, comparisons), so known and unknown are computed apart.
    if not node.meta["val"].is_floating_point():
        return unknown(node)
    leaves = [compact(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    depends = torch.stack(torch.broadcast_tensors(*(leaf != leaf for leaf in leaves))).any(0)
    args, kwargs = tree_map(lambda leaf: _filled(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return torch.where(depends, torch.nan, functional(node)(*args, **kwargs)).expand(node.meta["val"].shape)


def _filled(value: Tensor) -> Tensor:
    value = compact(value)
    return value.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf) if value.is_floating_point() else value


def _known_product(node: Node, args: tuple, kwargs: dict) -> Any:
    product = _known_pointwise(node, args, kwargs)
    if product is UNKNOWN:
        return product
    for factor in args[:2]:
        zero = compact(factor) == 0 if isinstance(factor, Tensor) else torch.tensor(factor == 0)
        product = torch.where(zero, 0.0, product)
    return restride(product)


def _label_cast(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    return args[0]


def _known_cast(node: Node, args: tuple, kwargs: dict) -> Any:
    fake = node.meta["val"]
    both = fake.is_floating_point() and args[0].is_floating_point()
    return args[0].to(dtype=fake.dtype, device=fake.device) if both else unknown(node)


def _label_prelu(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    value, slope = args[:2]
    if len(slope.shape) and slope.shape[0] > 1:
        run.tie_or_pin(value.fields.get(1), slope.fields.get(0), node, "scales an input of fixed size")
    return value


def _known_prelu(node: Node, args: tuple, kwargs: dict) -> Any:
    value, slope = compact(args[0]), args[1]
    slope = slope.reshape(1, -1, *[1] * (value.dim() - 2)) if value.dim() > 1 else slope
    return restride(torch.where(value > 0, value, value * slope).expand(args[0].shape))


def _label_identity(run: Labelling, node: Node, args: tuple, kwargs: dict) -> Any:
    return args[0]


def _known_identity(node: Node, args: tuple, kwargs: dict) -> Any:
    return args[0]


RULES = {
    "identity": Rule(_label_identity, _known_identity, reads_heads=True),
    "pointwise": Rule(_label_pointwise, _known_pointwise, reads_heads=True),
    "product": Rule(_label_pointwise, _known_product, reads_heads=True),
    "cast": Rule(_label_cast, _known_cast, reads_heads=True),
    "prelu": Rule(_label_prelu, _known_prelu),
}
