"""Importances of one's own, and what several share."""

import pytest
import torch
from torch import nn

import lightning_fold as lf


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def _kept(model: nn.Sequential, first: torch.Tensor) -> list[int]:
    return [int((first == row).all(1).nonzero()) for row in model[0].weight.detach()]


def test_a_function_of_the_users_own() -> None:
    model, x = _network(), torch.randn(4, 5, dtype=torch.float64)
    first = model[0].weight.detach().clone()
    lf.prune(model, x, keep=0.5, of="channels", importance=lambda network, group: torch.arange(group.size).flip(0))
    assert _kept(model, first) == [0, 1, 2, 3]


@pytest.mark.parametrize("scores", [torch.ones(3), torch.full((8,), float("nan"))])
def test_scores_of_another_shape_or_nan_are_refused(scores) -> None:
    with pytest.raises(ValueError, match="one for each channel"):
        lf.prune(_network(), torch.randn(4, 5, dtype=torch.float64), importance=lambda network, group: scores)
