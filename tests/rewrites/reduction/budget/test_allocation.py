"""Budgets: met, for parameters and FLOPs; what cannot be met is refused and the network unharmed."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.channels.widths import find_prunable_groups
from lightning_fold.rewrites.reduction.budget.cost_model import cost_model
from tests.zoo import ZOO, build, run

ATTENTION = ["attention_fused", "attention_apart", "attention_by_hand", "attention_single"]


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
@pytest.mark.parametrize("of", ["parameters", "flops"])
@pytest.mark.parametrize("name", ["residual", "dense", "grouped", "gated", "attention_fused", "gate", "stream"])
def test_budget_is_met(name: str, of: str, method) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    report = method(model, inputs, keep=0.7, of=of)
    share = getattr(report, f"{of}_after") / getattr(report, f"{of}_before")
    assert abs(share - 0.7) <= 0.02 or any("size found for the requested 70.0%" in note for note in report.notes)
    assert abs(share - 0.7) <= 0.1  # one channel of these tiny networks is some per cent of them
    assert run(model, inputs).isfinite().all()


def _upscaling(stride: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 32, 4, stride=stride), nn.ReLU(), nn.Conv2d(32, 2, 1))


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_budget_of_strided_transposed_convolutions(share: float, method) -> None:
    model, x = _upscaling(4), torch.randn(2, 3, 8, 8)
    before = lf.count_flops(model, x)
    report = method(model, x, keep=share, of="flops")
    assert lf.count_flops(model, x) == pytest.approx(share * before, abs=0.02 * before) and report.notes == ()


def test_values_stay_with_queries_that_cannot_be_folded() -> None:
    """One view cuts queries, keys and values into heads; what stays is known before sizes are allocated."""
    model, inputs = build("attention_by_hand"), ZOO["attention_by_hand"].inputs()
    structure, widths = find_prunable_groups("fold", model, inputs)
    others = [width for width in widths if "qkv" not in width.group.name]
    costs = cost_model(model, inputs, structure, others, flops=False)
    report = lf.fold(model, inputs, keep=0.5, of="channels")
    assert costs.cost([round(0.5 * width.size) for width in others]) == report.parameters_after
    reasons = [kept.reason for kept in report.kept if "qkv" in kept.tensor]
    assert len(reasons) == len(widths) - len(others) == 4  # two layers
    assert sum("is summed in a product" in reason for reason in reasons) == 2
    assert sum("must keep as many channels as others" in reason for reason in reasons) == 2


def test_a_width_that_does_nothing_gives_its_channels_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[8:] *= 1e-6
    x = torch.randn(64, 6, dtype=torch.float64)
    dense = model(x)
    lf.prune(model, x, keep=0.55, batches=[x, x])
    assert model[0].out_features <= 8 < model[2].out_features
    torch.testing.assert_close(model(x), dense, rtol=0.2, atol=0.2)


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_impossible_budget_names_the_minimum(method) -> None:
    model, inputs = build("residual"), ZOO["residual"].inputs()
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"keep=0.001\).*still leaves 0\.\d+ of the parameters.*at least that"):
        method(model, inputs, keep=0.001)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_nan_weights_are_refused(method) -> None:
    model, inputs = build("residual"), ZOO["residual"].inputs()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        method(model, inputs, keep=0.5)


@pytest.mark.parametrize("arguments", [{"batches": []}, {"repair": "data"}, {"compensate": "all"}])
def test_bad_options(arguments) -> None:
    with pytest.raises(ValueError, match=r"prune\((batches|repair|compensate)="):
        lf.prune(build("mlp"), ZOO["mlp"].inputs(), **arguments)


def test_rewrites_compose() -> None:
    model, inputs = build("residual"), ZOO["residual"].inputs()
    start = lf.count_parameters(model)
    reports = [
        lf.prune(model, inputs, keep=0.8, compensate="least-squares"),
        lf.fold(model, inputs, keep=0.8),
        lf.factorize(model, inputs, keep=0.8),
    ]
    assert all(a.parameters_after == b.parameters_before for a, b in pairwise(reports))
    assert reports[-1].parameters_after < 0.56 * start and run(model, inputs).isfinite().all()


def test_one_channel_in_each_width() -> None:
    for method in (lf.prune, lf.fold):
        model = build("mlp")
        method(model, ZOO["mlp"].inputs(), keep=0.001, of="channels")
        assert [model[i].out_features for i in (0, 2, 4, 6)] == [1, 1, 1, 4]
