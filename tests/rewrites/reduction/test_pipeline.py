"""The pipeline of prune and fold, with a selector of one's own."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.errors import ArgumentError
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.options import Options
from lightning_fold.rewrites.reduction.pipeline import reduce_channels
from lightning_fold.rewrites.reduction.selector import ChannelSelector
from lightning_fold.rewrites.size import Size


class _First(ChannelSelector):
    """The first channels stay; the width that ``refuse`` names stays whole."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        order = torch.arange(width.group.size)
        return torch.where(order < kept, order, -1)

    def refused(self, width: PrunableGroup) -> str | None:
        return "mine" if width.group.name == self.refuse else None

    def notes(self, widths: list[PrunableGroup]) -> list[str]:
        return [f"{len(widths)} shrank"]


def _network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double(), torch.randn(5, 3, dtype=torch.float64)


def _reduce(model: nn.Module, x: Tensor, size: Size, refuse: str = "", **options: Any) -> RewriteReport:
    plain = {"compensate": "none", "repair": "none", "batches": None, "calibration": "auto", "seed": 0, "skip": ()}
    found = Options.of("first", **{**plain, **options}, merging=False)
    return reduce_channels("first", model, x, size, found, [], lambda context: _First(refuse))


def test_network_is_the_one_sliced_by_hand() -> None:
    model, x = _network()
    dense = deepcopy(model)
    report = _reduce(model, x, Size({"0": 0.5, "2": 0.75}, "channels"))
    hidden = torch.tanh(x @ dense[0].weight[:3].T + dense[0].bias[:3])
    hidden = torch.tanh(hidden @ dense[2].weight[:3, :3].T + dense[2].bias[:3])
    torch.testing.assert_close(model(x), hidden @ dense[4].weight[:, :3].T + dense[4].bias, rtol=1e-12, atol=1e-12)
    assert report.method == "first" and "2 shrank" in report.notes and report.max_relative_error is None


@pytest.mark.parametrize(("refuse", "skip"), [("2.weight", ()), ("", ("4",))])
def test_widths_that_are_refused_or_skipped_stay_and_are_listed(refuse: str, skip: tuple[str, ...]) -> None:
    model, x = _network()
    report = _reduce(model, x, Size(0.5, "channels"), refuse, skip=skip)
    assert (model[0].out_features, model[2].out_features) == (3, 4)
    assert [(kept.tensor, kept.channels) for kept in report.kept] == [("2.weight", 4)]


@pytest.mark.parametrize("of", ["parameters", "channels"])
def test_all_of_it_is_nothing(of: Any) -> None:
    model, x = _network()
    before = deepcopy(model.state_dict())
    report = _reduce(model, x, Size(1.0, of))
    assert report.changes == () and "0 shrank" in report.notes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_budget_is_the_nearest_size_that_channels_allow() -> None:
    for keep in (0.4, 0.6, 0.8):
        model, x = _network()
        report = _reduce(model, x, Size(keep))
        a, b = model[0].out_features, model[2].out_features
        assert report.parameters_after == 4 * a + (a + 1) * b + (b + 1) * 2
        assert abs(report.parameters_after / report.parameters_before - keep) < 0.1
        missed = abs(report.parameters_after / report.parameters_before - keep) > 0.02
        assert any(f"{keep:.1%}" in note for note in report.notes) == missed


@pytest.mark.parametrize("size", [Size(0.0), Size({"nowhere": 0.5}, "channels"), Size(0.01)])
def test_sizes_that_cannot_be_are_refused_and_the_network_is_unharmed(size: Size) -> None:
    model, x = _network()
    before = deepcopy(model.state_dict())
    with pytest.raises(ArgumentError, match="first"):
        _reduce(model, x, size)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
