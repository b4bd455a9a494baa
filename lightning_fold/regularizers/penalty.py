"""Common parts of penalties on one weight: a value with its own gradient, and names for the axes."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_fold.errors import ArgumentError

# Dimension 0 of a weight, dimension 1, all others.
WeightAxis = Literal["output", "input", "space"]
_AXES = get_args(WeightAxis)

# A detached weight -> the penalty's value, a scalar, and its gradient, of the weight's shape.
ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


def with_gradient(weight: Tensor, evaluate: ValueAndGradient) -> Tensor:
    """The value of a penalty as a scalar that autograd differentiates once, with the gradient from ``evaluate``.

    Half precision is evaluated in float32, even under autocast, and the gradient is rounded after the last factor: the
    number of weights, which turns a mean into a sum, may exceed the range of float16.
    """
    return _WithGradient.apply(weight, evaluate)  # pyright: ignore[reportReturnType]


def times_weights(mean: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``mean`` times the number of weights of a layer, so that its strength is comparable to weight decay."""

    @wraps(mean)
    def total(weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return weight.numel() * mean(weight, *args, **kwargs)

    return total


def dimensions(weight: Tensor, axes: Sequence[WeightAxis]) -> list[int]:
    """The dimensions of a weight (O, I, ...) that ``axes`` name.

    Raises:
        ArgumentError: an axis has another name.
    """
    if unknown := set(axes) - set(_AXES):
        raise ArgumentError(f"axes={list(axes)}: expected names among {', '.join(_AXES)}; found {sorted(unknown)}.")
    return [dim for dim in range(weight.dim()) if _AXES[min(dim, 2)] in axes]


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, evaluate: ValueAndGradient) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            value, gradient = evaluate(weight.detach().to(torch.promote_types(weight.dtype, torch.float32)))
        ctx.save_for_backward(gradient)
        ctx.dtype = weight.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream.to(gradient.dtype)).to(ctx.dtype), None
