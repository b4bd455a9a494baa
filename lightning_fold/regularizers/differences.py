"""First and second differences of a weight along its axes: small where neighbouring channels are similar."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_fold.regularizers.penalty import WeightAxis, dimensions, with_gradient


def first_difference(
    weight: Tensor, axes: Sequence[WeightAxis] = ("output", "input"), *, squared: bool = True
) -> Tensor:
    """Mean of the squared (or absolute) differences w[i + 1] - w[i] along each axis, summed over the axes; a scalar.

    Source: one of the penalties of "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469); axes, mean and
    powers are this project's own choice.

    Args:
        weight: (O, I, ...), floating point.
        axes: "output" for dimension 0, "input" for dimension 1, "space" for all others. An axis too short for a
            difference adds nothing.
        squared: whether to take squares; if not, absolute values, with gradient 0 at 0.

    Raises:
        ArgumentError: an axis has another name.
    """
    return _difference(weight, 1, axes, squared)


def second_difference(
    weight: Tensor, axes: Sequence[WeightAxis] = ("output", "input"), *, squared: bool = True
) -> Tensor:
    """Mean of the squared (or absolute) differences w[i + 2] - 2 w[i + 1] + w[i]; see :func:`first_difference`."""
    return _difference(weight, 2, axes, squared)


def _difference(weight: Tensor, order: int, axes: Sequence[WeightAxis], squared: bool) -> Tensor:
    dims = [dim for dim in dimensions(weight, axes) if weight.shape[dim] > order]
    return with_gradient(weight, partial(_evaluate, dims, order, squared))


def _evaluate(dims: list[int], order: int, squared: bool, weight: Tensor) -> tuple[Tensor, Tensor]:
    value, gradient = weight.new_zeros(()), torch.zeros_like(weight)
    binomial = [(-1) ** (order - k) * math.comb(order, k) for k in range(order + 1)]
    for dim in dims:
        length = weight.shape[dim] - order
        difference = torch.diff(weight, n=order, dim=dim)
        norm = torch.linalg.vector_norm(difference, 2 if squared else 1)
        value += norm ** (2 if squared else 1) / difference.numel()
        slope, scale = (difference, 2) if squared else (difference.sign(), 1)
        for k, factor in enumerate(binomial):
            gradient.narrow(dim, k, length).add_(slope, alpha=scale * factor / difference.numel())
    return value, gradient
