"""What all penalties on one weight share."""

import pytest
import torch

from lightning_fold.errors import ArgumentError
from lightning_fold.regularizers.penalty import dimensions, with_gradient


def _cubes(weight):
    return weight.pow(3).sum(), 3 * weight.square()


def test_value_and_gradient_are_those_of_autograd() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    value = with_gradient(weight, _cubes)
    (found,) = torch.autograd.grad(value.exp() * 2, weight)
    reference = weight.pow(3).sum()
    (expected,) = torch.autograd.grad(reference.exp() * 2, weight)
    assert value.dtype == torch.float64 and value == reference
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_single_and_rounded_last(dtype: torch.dtype) -> None:
    weight = torch.full((2,), 0.5, dtype=dtype, requires_grad=True)
    seen = []

    def evaluate(detached):
        seen.append((detached.dtype, detached.requires_grad, torch.is_autocast_enabled("cpu")))
        return detached.sum() * 1e5, torch.full_like(detached, 1e5)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = with_gradient(weight, evaluate)
    (value * 1e-5).backward()
    assert seen == [(torch.float32, False, False)] and value.dtype == torch.float32 and value == 1e5
    assert weight.grad.dtype == dtype and torch.equal(weight.grad, torch.ones(2, dtype=dtype))


def test_second_derivative_is_refused() -> None:
    weight = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(with_gradient(weight, _cubes) * weight[0], weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("rank", "axes", "expected"),
    [
        (1, ["output"], [0]),
        (2, ["input", "output"], [0, 1]),
        (2, ["space"], []),
        (4, ["space"], [2, 3]),
        (4, ["output", "space"], [0, 2, 3]),
        (3, [], []),
    ],
)
def test_axes_name_dimensions(rank: int, axes: list, expected: list[int]) -> None:
    assert dimensions(torch.empty((1,) * rank), axes) == expected


def test_unknown_axis_is_named() -> None:
    with pytest.raises(ArgumentError, match="rows"):
        dimensions(torch.empty(2, 2), ["output", "rows"])
