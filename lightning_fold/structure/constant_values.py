"""Symbolic values of the run on constants: real tensors in which NaN means "depends on the input"."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.structure.operators.nodes import compact, restride

Constants = dict[Node, Any]


class _Unknown:
    """Marks an integer or boolean tensor that depends on the input, since such types have no NaN."""


UNKNOWN = _Unknown()


def channel_constants(value: Any, dim: int) -> Tensor | None:
    """The value of each channel along ``dim`` if it is the same for all positions and inputs, else NaN."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    moved = compact(value).movedim(dim, 0)
    moved = moved.reshape(len(moved), -1)
    first = moved[:, 0]
    uniform = torch.where((moved == first[:, None]).all(1), first, torch.nan)
    return uniform.expand(value.shape[dim])


def unknown(node: Node) -> Any:
    """The value that means "depends on the input"."""
    return tree_map(_unknown_like, node.meta.get("val"))


def _unknown_like(fake: Any) -> Any:
    if not isinstance(fake, Tensor) or not fake.is_floating_point():
        return UNKNOWN
    return torch.full((), torch.nan, dtype=fake.dtype, device=fake.device).expand(fake.shape)


def has_unknown(args: tuple, kwargs: dict) -> bool:
    """Whether an integer or boolean tensor among the arguments depends on the input."""
    return any(leaf is UNKNOWN for leaf in tree_leaves((args, kwargs)))


def depends(value: Any) -> bool:
    """Whether any element of ``value`` is unknown."""
    return isinstance(value, Tensor) and value.is_floating_point() and bool(compact(value).isnan().any())


def tidy(value: Any) -> Any:
    """``value``; a tensor gets stride 0 where it does not vary."""
    return restride(value) if isinstance(value, Tensor) else value


def along(vector: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """``vector`` repeated to ``shape`` with its elements along ``dim``."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.reshape(view).expand(shape)
