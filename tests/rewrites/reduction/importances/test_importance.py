"""Importances of one's own, and what several share."""

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.calibration import LazyCalibration
from lightning_fold.rewrites.reduction.importances.importance import (
    Importance,
    ScoreFunction,
    channel_rows,
    written_rows,
)
from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.structure.groups import read_structure


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


def test_rows_of_a_flattened_channel_are_all_its_places() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    (group,) = (g for g in lf.channel_groups(model, torch.randn(2, 3, 2, 2)) if g.pinned is None)
    read = next(member for member in group.members if member.reads)
    expected = model[2].weight.detach().reshape(2, 4, 4).permute(1, 2, 0).reshape(4, 8)  # (channel, place, output)
    assert torch.equal(channel_rows(model, read), expected)
    assert torch.equal(channel_rows(model, read, lambda tensor: 2 * tensor.detach()), 2 * expected)
    assert torch.equal(written_rows(model, group), model[0].weight.detach().flatten(1))


def test_a_function_is_its_own_score_and_a_bare_importance_has_none() -> None:
    model, x = _network(), torch.randn(4, 5, dtype=torch.float64)
    context = SelectionContext(model, read_structure(model, x), LazyCalibration(model, x, None))
    assert ScoreFunction(len).prepare(context) is len
    assert Importance().notes(context, lf.channel_groups(model, x)) == []
    with pytest.raises(NotImplementedError):
        Importance().prepare(context)
