"""repair: BatchNorm statistics are those of the data."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.rewrites.calibration import from_batches, mean_squares, second_moments
from tests.zoo import ZOO, build


def test_statistics_of_one_norm_against_numpy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).double()
    batches = [torch.randn(32, 4, dtype=torch.float64) for _ in range(5)]
    hidden = [model[0](batch).detach().numpy() for batch in batches]
    lf.repair(model, [(batch, torch.zeros(32)) for batch in batches])
    mean = sum(h.mean(0) for h in hidden) / 5
    variance = sum(h.var(0, ddof=1) for h in hidden) / 5
    torch.testing.assert_close(model[1].running_mean, torch.from_numpy(mean))
    torch.testing.assert_close(model[1].running_var, torch.from_numpy(variance))
    assert model[1].momentum == 0.1 and model.training and model[1].training


@pytest.mark.parametrize("sizes", [[8, 8, 1], [1, 8, 8], [8, 1, 8], [1, 1, 15], [1] * 17, [8, 8, 1, 1]])
def test_single_examples_go_with_their_neighbours(sizes: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).double()
    batches = torch.randn(sum(sizes), 4, dtype=torch.float64).split(sizes)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    lf.repair(model, [(batch, 0) for batch in batches])
    assert torch.equal(torch.cat(seen), torch.cat(batches)) and min(map(len, seen)) > 1
    assert max(map(len, seen)) <= max(sizes) + 2 or len(seen) == 1
    mean = sum(model[0](batch).mean(0) for batch in seen) / len(seen)
    torch.testing.assert_close(model[1].running_mean, mean.detach())


def test_repair_undoes_wrong_statistics() -> None:
    model, x = build("residual"), ZOO["residual"].inputs(64)[0]
    lf.repair(model, [x])
    expected = model(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 3.0
            module.running_var *= 7.0
    assert not torch.allclose(model(x), expected)
    lf.repair(model, [x])
    torch.testing.assert_close(model(x), expected)
    assert not model.training


@pytest.mark.parametrize("batches", [[], [torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randn(4, 5)]])
def test_failure_leaves_statistics_as_they_were(batches: list) -> None:
    model = build("residual").train()
    model[0][1].eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    with pytest.raises((ValueError, RuntimeError)):
        lf.repair(model, batches)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert [module.training for module in model.modules()] == modes


def test_without_norms_nothing_happens() -> None:
    model = build("mlp")
    before = [p.detach().clone() for p in model.parameters()]
    lf.repair(model, [])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


class _Forked(nn.Module):
    """Two BatchNorms, of which an argument chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.usual, self.other = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor, other: bool = False) -> torch.Tensor:
        return self.last((self.other if other else self.usual)(self.first(x)).relu())


def test_norms_that_no_batch_reaches_stay() -> None:
    torch.manual_seed(0)
    model, batch = _Forked().double(), torch.randn(32, 4, dtype=torch.float64)
    model(batch, other=True)
    before = {name: buffer.clone() for name, buffer in model.other.named_buffers()}
    lf.repair(model, [batch])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.other.named_buffers())
    torch.testing.assert_close(model.usual.running_mean, model.first(batch).detach().mean(0))


def test_norms_alone() -> None:
    """Neither parameters nor, in the first, buffers."""
    lf.repair(nn.Sequential(nn.ReLU()), [torch.randn(2, 3)])
    norm, batch = nn.BatchNorm1d(3, affine=False), torch.randn(8, 3)
    lf.repair(norm, [batch])
    torch.testing.assert_close(norm.running_mean, batch.mean(0))


class _Counting(nn.Sequential):
    """It notes how many examples it meets at once, in all its copies."""

    seen: list[int] = []

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(input))
        return super().forward(input)


def test_repair_on_many_batches_meets_them_a_few_at_a_time() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 3)]
    model, batches = _Counting(*layers).double(), [torch.randn(48, 4, dtype=torch.float64) for _ in range(21)]
    model.seen.clear()
    options: dict[str, Any] = {"importance": "reconstruction", "keep": 0.7, "repair": "data"}
    lf.prune(model, batches[0], batches=[*batches, torch.randn(1, 4, dtype=torch.float64)], **options)
    assert max(model.seen) <= 256 < 20 * 48


def test_moments_of_batches_are_those_of_all_examples() -> None:
    """Batches of several sizes, and the last one held out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    batches = [torch.randn(size, 4, dtype=torch.float64) for size in (200, 7, 130, 90, 60)]
    calibration = from_batches(model, batches[0], batches)
    hidden = model[:2](torch.cat(batches[:-1])).detach()
    torch.testing.assert_close(second_moments(calibration, ["2"])["2"], hidden.T @ hidden / 427)
    torch.testing.assert_close(mean_squares(calibration, ["2"])["2"], hidden.square().mean(0))
    torch.testing.assert_close(calibration.examples(205)[0], torch.cat(batches)[:205])


@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.compile])
def test_inside_a_wrapper(wrapper: Any) -> None:
    torch.manual_seed(0)
    alone, batch = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), torch.randn(32, 4)
    wrapped = deepcopy(alone)
    report = lf.repair(wrapper(wrapped), [(batch, 0)])
    lf.repair(alone, [batch])
    torch.testing.assert_close(wrapped.state_dict(), alone.state_dict(), rtol=0, atol=0)
    assert (report.method, report.parameters_before, report.parameters_after) == ("repair", 42, 42)
    assert report.changes == report.notes == ()


def test_report_says_what_was_not_reached() -> None:
    report = lf.repair(_Forked(), [torch.randn(8, 4)])
    assert report.notes == ("no batch reached other: the statistics are unchanged",)
    (note,) = lf.repair(nn.Sequential(nn.ReLU()), [torch.randn(2, 3)]).notes
    assert note == "Sequential has no BatchNorm with statistics: nothing changed"


class _Two(nn.Module):
    """Two inputs, and a switch that has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, first: Tensor, second: Tensor, scale: float = 1.0) -> Tensor:
        return self.norm(scale * (first + second))


@pytest.mark.parametrize("by_name", [False, True])
def test_batches_hold_as_many_inputs_as_the_network_requires(by_name: bool) -> None:
    first, second, target = torch.randn(8, 4), torch.randn(8, 4), torch.zeros(8)
    network = _Two()
    lf.repair(network, [{"second": second, "first": first, "y": target} if by_name else (first, second, target)])
    torch.testing.assert_close(network.norm.running_mean, (first + second).mean(0))
    with pytest.raises(lf.ArgumentError, match=r"expected batches of \(2 inputs, \.\.\.\), found a Tensor"):
        lf.repair(network, [first])
