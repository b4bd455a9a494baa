"""sparsity_within: as many zeros as asked, or just enough for the size that is wanted."""

from copy import deepcopy

import pytest
import torch

import lightning_fold as lf
from lightning_fold.rewrites.sparsity.sparsity_for_target import sparsity_within

INPUTS = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return lf.models.MLP(12, [40, 30], 5)


def left(model, share):
    trial = deepcopy(model)
    lf.sparsify(trial, share, criterion="connected", example_inputs=INPUTS)
    return lf.minimize(trial, INPUTS).parameters_after


def test_a_share_that_leaves_enough_stays(model):
    assert sparsity_within(model, 0.5, 1, INPUTS, criterion="connected") == 0.5


@pytest.mark.parametrize("parameters", [300, 700, 1200])
def test_smallest_share_that_reaches_the_size(model, parameters):
    """A sweep over shares, a hundredth apart, finds none smaller that does."""
    before = deepcopy(model.state_dict())
    share = sparsity_within(model, 0.95, parameters, INPUTS, criterion="connected")
    assert left(model, share) <= parameters
    sweep = [i / 100 for i in range(96)]
    assert all(left(model, smaller) > parameters for smaller in sweep if smaller < share - 1e-3)
    torch.testing.assert_close(model.state_dict(), before)
