"""Counts against formulas by hand."""

import io
import pickle

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.complexity import arrived_saving, counted_run, run_with
from tests.zoo import ZOO, build


def test_parameters_of_known_networks() -> None:
    assert lf.count_parameters(build("mlp")) == (9 + 1) * 16 + (16 + 1) * 14 + (14 + 1) * 12 + (12 + 1) * 4
    tied = build("shared_linear")
    assert lf.count_parameters(tied) == 10 * 12 + 13 * 12 + (12 * 10 + 2 * 10) + 11 * 4
    assert lf.count_parameters(nn.BatchNorm2d(7)) == 14


def test_flops_by_hand() -> None:
    """2 for each multiply-add: 2 * outputs * (kernel * inputs / groups); nothing for BatchNorm, ReLU and bias."""
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 1, groups=2),
        nn.Flatten(),
    )
    model.append(nn.Linear(8 * 5 * 4, 3))
    conv = 2 * (6 * 5 * 4) * (3 * 3 * 4)
    grouped = 2 * (8 * 5 * 4) * (6 // 2)
    linear = 2 * 3 * (8 * 5 * 4)
    assert lf.count_flops(model, torch.randn(1, 4, 10, 8)) == conv + grouped + linear
    assert lf.count_flops(model, torch.randn(7, 4, 10, 8)) == 7 * (conv + grouped + linear)


def test_counting_leaves_modes_and_statistics_alone() -> None:
    model = build("residual").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lf.count_flops(model, ZOO["residual"].inputs())
    lf.measure_latency(model, ZOO["residual"].inputs(), runs=1, warmup=0)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_latency_is_the_median_of_the_timed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0, 0.0, 3.0, 0.0, 1.0, 0.0, 2.0])
    monkeypatch.setattr("lightning_fold.complexity.time.perf_counter", lambda: next(ticks))
    assert lf.measure_latency(nn.Linear(2, 2), torch.randn(1, 2), runs=3, warmup=1) == 2.0


def test_latency_says_how_it_was_measured() -> None:
    latency = lf.measure_latency(nn.Linear(2, 2).double(), torch.randn(7, 2).double(), runs=3)
    conditions = {"device": "cpu", "dtype": "float64", "batch": 7, "threads": torch.get_num_threads(), "runs": 3}
    assert latency.conditions() == conditions
    assert f"{1000 * float(latency):.3f} ms" in str(latency) and "batch 7, float64, cpu" in str(latency)
    assert pickle.loads(pickle.dumps(latency)).conditions() == conditions


def test_latency_grows_with_the_work() -> None:
    small, large = nn.Linear(8, 8), nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    assert lf.measure_latency(large, torch.randn(64, 512)) > 5 * lf.measure_latency(small, torch.randn(1, 8))


@pytest.mark.parametrize(
    ("flops", "seconds", "share"),
    [
        ((100, 25), (4.0, 1.0), 1.0),
        ((100, 50), (4.0, 3.0), 0.5),
        ((100, 50), (4.0, 5.0), -0.5),
        ((9, 9), (2.0, 1.0), None),
    ],
)
def test_share_of_the_saving_that_arrives(flops, seconds, share) -> None:
    assert arrived_saving(flops, seconds) == (share if share is None else pytest.approx(share))


def test_bytes_are_those_of_the_file(tmp_path) -> None:
    model, buffer = build("residual"), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert lf.count_bytes(model) == len(buffer.getvalue()) > 8 * lf.count_parameters(model)


def test_bad_arguments() -> None:
    for runs, warmup in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match=r"expected runs >= 1 and warmup >= 0"):
            lf.measure_latency(nn.Linear(2, 2), torch.randn(1, 2), runs=runs, warmup=warmup)


def test_flops_where_a_module_reads_a_view_of_a_parameter() -> None:
    """A class token handed from module to module in a tuple (PiT), which the counter's module hooks cannot take."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.zeros(1, 1, 4)), nn.Sequential(nn.Linear(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.token.expand(len(x), -1, -1)) + x.sum()

    assert lf.count_flops(Tokens(), torch.zeros(2, 4)) == 2 * 2 * 4 * 3


def test_module_held_under_two_names_keeps_its_parameters():
    """torch's functional_call leaves plain tensors behind in it, which nothing trains."""
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict(
        {"one": nn.Sequential(shared, nn.ReLU()), "two": nn.Sequential(shared), "tied": nn.Linear(4, 4)}
    )
    model["tied"].weight = shared.weight
    network = nn.Sequential(model["one"], model["two"], model["tied"])
    before, x = dict(network.named_parameters()), torch.randn(2, 4)
    expected = network(x)
    found, flops = counted_run(network, x)
    assert torch.equal(found, expected) and flops == 3 * 2 * 2 * 4 * 4
    after = dict(network.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items()) and after.keys() == before.keys()
    zeros = {name: torch.zeros_like(parameter) for name, parameter in before.items()}
    assert not run_with(network, zeros, x).any() and type(shared.weight) is nn.Parameter
