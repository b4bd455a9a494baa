"""Selectors: what one that only assigns leaves to others."""

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.rewrites.calibration import LazyCalibration
from lightning_fold.rewrites.channels.widths import PrunableGroup, find_prunable_groups
from lightning_fold.rewrites.reduction.selector import ChannelSelector, SelectionContext


class _First(ChannelSelector):
    """The first channels stay."""

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        order = torch.arange(width.group.size)
        return torch.where(order < kept, order, -1)


def test_a_selector_needs_to_assign_and_nothing_else() -> None:
    _, (width,) = find_prunable_groups("prune", nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    with pytest.raises(NotImplementedError):
        ChannelSelector().assign(width, 2)
    assert _First().approximate(width, 2).tolist() == [0, 1, -1, -1]
    assert _First().scales(width).tolist() == [1.0] * 4
    assert _First().refused(width) is None and _First().notes([width]) == []


@pytest.mark.parametrize("batches", [None, [torch.ones(2, 3)]])
def test_a_context_has_the_batches_of_its_calibration(batches) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3)
    structure, _ = find_prunable_groups("prune", model, x)
    context = SelectionContext(model, structure, LazyCalibration(model, x, batches))
    assert context.batches is batches and context.loss is None
    assert context.calibration.get().real == (batches is not None)
