"""Error curves: against networks that were cut by hand."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.rewrites.calibration import Calibration
from lightning_fold.rewrites.channels.widths import PrunableGroup, find_prunable_groups
from lightning_fold.rewrites.reduction.budget.sensitivity import error_curves
from lightning_fold.rewrites.reduction.selector import ChannelSelector
from tests.zoo import ZOO, build


class _First(ChannelSelector):
    """The first channels stay."""

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        order = torch.arange(width.group.size)
        return torch.where(order < kept, order, -1)


class _Pairs(ChannelSelector):
    """Channels that follow each other are merged."""

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        return torch.arange(width.group.size) * kept // width.group.size


def _network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double(), torch.randn(24, 3).double()


def _curve(model: nn.Module, x: Tensor, selector: ChannelSelector, *, refitted: bool):
    structure, widths = find_prunable_groups("prune", model, x)
    dense = Calibration(deepcopy(model).eval(), [x], x, real=True)
    (curve,) = error_curves(dense, structure, widths, selector, refitted=refitted)
    return curve


def _relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).square().sum() / (expected - expected.mean(0)).square().sum())


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_error_of_channels_that_go_is_that_of_the_sliced_network(size: int) -> None:
    model, x = _network()
    hidden = model[:2](x).detach()
    errors = [_relative(hidden[:, :s] @ model[2].weight[:, :s].T + model[2].bias, model(x)) for s in range(size, 9, 2)]
    assert _curve(model, x, _First(), refitted=False)(size) == pytest.approx(max(errors))  # it never falls


def test_error_of_merged_channels_is_that_of_their_means() -> None:
    model, x = _network()
    errors = [0.0]
    for size in (7, 5, 3, 1):  # what is measured: in between it is interpolated
        clusters = [[i for i in range(8) if i * size // 8 == k] for k in range(size)]
        means = [torch.tanh(x @ model[0].weight[c].mean(0) + model[0].bias[c].mean()) for c in clusters]
        read = [torch.outer(mean, model[2].weight[:, c].sum(1)) for mean, c in zip(means, clusters, strict=True)]
        errors.append(max(_relative(sum(read, model[2].bias), model(x)), errors[-1]))
    curve = _curve(model, x, _Pairs(), refitted=False)
    assert [curve(size) for size in (8, 7, 5, 3, 1)] == pytest.approx(errors)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_error_after_a_refit_is_that_of_lstsq(size: int) -> None:
    model, x = _network()
    hidden, wanted = model[:2](x).detach(), model(x).detach() - model[2].bias.detach()
    solution = torch.linalg.lstsq(hidden[:, :size], wanted).solution
    expected = _relative(hidden[:, :size] @ solution, wanted)
    curve = _curve(model, x, _First(), refitted=True)
    assert curve(size) == pytest.approx(expected, rel=1e-2, abs=1e-8)  # up to the ridge
    assert curve(size) <= _curve(model, x, _First(), refitted=False)(size)


@pytest.mark.parametrize("refitted", [False, True])
def test_curves_are_zero_at_full_size_and_leave_the_network_as_it_was(refitted: bool) -> None:
    model, inputs = build("residual"), ZOO["residual"].inputs()
    structure, widths = find_prunable_groups("prune", model, inputs)
    dense = Calibration(deepcopy(model), [inputs], inputs, real=True)
    for width, curve in zip(widths, error_curves(dense, structure, widths, _First(), refitted=refitted), strict=True):
        values = [curve(size) for size in range(width.size, 0, -1)]
        assert values[0] == 0 and values == sorted(values) and values[-1] > 0
    for network in (model, dense.network):
        before = build("residual").state_dict()
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
