"""First and second differences against autograd in float64 and against a plain loop."""

import itertools

import pytest
import torch

from lightning_fold.regularizers import first_difference, group_sparsity, second_difference

SHAPES = [(5, 4, 3, 3), (7, 6), (4, 3, 5), (1, 5), (2, 2), (3, 1, 1, 1)]
FUNCTIONS = {1: first_difference, 2: second_difference}


def by_loop(weight, order, axes, squared):
    """The mean over all differences along each dimension, one difference at a time; autograd goes through."""
    total = weight.sum() * 0
    for dim in range(weight.dim()):
        if ("output", "input", "space")[min(dim, 2)] not in axes:
            continue
        slices = weight.unbind(dim)
        if order == 1:
            found = [b - a for a, b in itertools.pairwise(slices)]
        else:
            found = [a - 2 * b + c for a, b, c in zip(slices, slices[1:], slices[2:], strict=False)]
        if found:
            stacked = torch.stack(found)
            total = total + (stacked**2 if squared else stacked.abs()).sum() / stacked.numel()
    return total


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("axes", [["output"], ["input", "space"], ["output", "input", "space"]], ids="+".join)
def test_value_and_gradient(shape, order, squared, axes):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    reference = weight.detach().clone().requires_grad_()
    value, expected = FUNCTIONS[order](weight, axes, squared=squared), by_loop(reference, order, axes, squared)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    (2.5 * value).backward()
    (2.5 * expected).backward()
    torch.testing.assert_close(weight.grad, reference.grad, rtol=1e-12, atol=1e-14)


def test_gradient_by_finite_differences():
    weight = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for function in (first_difference, second_difference, group_sparsity):
        assert torch.autograd.gradcheck(function, (weight,))


def test_what_is_smooth_has_no_penalty():
    constant = torch.full((5, 4), 3.0)
    line = torch.arange(5.0)[:, None] * torch.ones(4)
    assert (
        float(first_difference(constant)) == float(second_difference(constant)) == float(second_difference(line)) == 0
    )
    assert float(first_difference(line)) == pytest.approx(1)  # the mean: it does not grow with the size
    assert float(first_difference(line.repeat(1, 8))) == pytest.approx(1)


def test_unknown_axis_is_refused():
    for function in (first_difference, second_difference, group_sparsity):
        with pytest.raises(ValueError, match=r"axes=\['outputs'\]: expected names among output, input, space"):
            function(torch.zeros(3, 3), ["outputs"])


def test_group_sparsity_is_the_sum_of_the_norms():
    weight = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = sum(float(weight[i].square().sum()) ** 0.5 for i in range(4))
    columns = sum(float(weight[:, i].square().sum()) ** 0.5 for i in range(3))
    assert float(group_sparsity(weight)) == pytest.approx(rows, rel=1e-12)
    assert float(group_sparsity(weight, ["output", "input"])) == pytest.approx(rows + columns, rel=1e-12)
    weight[1] = 0
    weight.requires_grad_()
    group_sparsity(weight).backward()
    assert torch.equal(weight.grad[1], torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(weight.grad[0], (weight[0] / weight[0].norm()).detach())
