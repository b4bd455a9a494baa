"""The nuclear norm and its gradient against the singular value decomposition."""

import pytest
import torch

from lightning_fold.regularizers import nuclear_norm, polar_factor
from lightning_fold.regularizers.nuclear import SMALLEST


def with_singular_values(values, columns, seed=0):
    """A matrix of these singular values, and its exact polar factor."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(values)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64, generator=generator))
    return (left * values) @ right.mT, left @ right.mT


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 3), (5, 2, 7), (8, 8)])
def test_value_and_gradient_are_those_of_the_svd(shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    reference = weight.detach().clone().requires_grad_()
    expected = torch.linalg.svdvals(reference.flatten(1)).sum()
    value = nuclear_norm(weight)
    (3 * value).backward()
    (3 * expected).backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(weight.grad, reference.grad, rtol=0, atol=1e-4)


@pytest.mark.parametrize("condition", [1.0, 10.0, 200.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-5), (torch.float32, 1e-3)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_polar_factor_is_that_of_the_svd(condition, dtype, bound, scale):
    values = torch.logspace(0, -float(torch.tensor(condition).log10()), 40, dtype=torch.float64)
    matrix, polar = with_singular_values(values * scale, 90)
    assert values.min() > SMALLEST * values.pow(4).sum() ** 0.25
    found = polar_factor(matrix.to(dtype)).double()
    assert float(torch.linalg.matrix_norm(found - polar, 2)) < bound
    assert float(torch.linalg.matrix_norm(polar_factor(matrix.mT.to(dtype)).double() - polar.mT, 2)) < bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ill_conditioned_matrix(dtype):
    """Large singular values are exact; those too small shrink less, never the wrong way and never by more than 1."""
    values = torch.logspace(0, -8, 40, dtype=torch.float64)
    matrix, polar = with_singular_values(values, 90)
    found = polar_factor(matrix.to(dtype)).double()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    gains = torch.diagonal(left.mT @ found @ right.mT)
    large = values > SMALLEST * values.pow(4).sum() ** 0.25
    assert float((gains[large] - 1).abs().max()) < 1e-3
    assert 5 < int(large.sum()) < 35
    assert float(gains.min()) > -1e-3 and float(gains.max()) < 1 + 1e-3
    assert float(gains[~large][0]) > float(gains[-1])
    assert float((found * matrix).sum()) == pytest.approx(float(values.sum()), rel=1e-3)
    assert polar.shape == found.shape


def test_rank_deficient_and_zero_matrices():
    matrix = torch.outer(torch.tensor([3.0, 4.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(polar_factor(matrix), matrix / 5, rtol=1e-4, atol=1e-5)
    zero = torch.zeros(4, 5, requires_grad=True)
    nuclear_norm(zero).backward()
    assert torch.equal(zero.grad, torch.zeros(4, 5))


def test_half_precision_and_autocast_are_evaluated_in_float32():
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = torch.linalg.svdvals(weight.double()).sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = nuclear_norm(weight.requires_grad_())
        whole = nuclear_norm(weight.detach().float())
    half.backward()
    assert weight.grad.dtype == torch.bfloat16
    for value in (half, whole):
        assert float(value) == pytest.approx(float(exact), rel=1e-4)
