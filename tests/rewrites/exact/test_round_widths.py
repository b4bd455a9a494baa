"""Widths on multiples: which channels stay so that hardware likes what is left, and what that costs."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.exact.round_widths import parameters_left
from lightning_fold.structure.groups import read_structure
from lightning_fold.structure.liveness import live_groups
from tests.zoo import PATTERNS, ZOO, build, error_of, run


def _wide(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 3)).double()
    with torch.no_grad():
        model[0].weight[:19] = 0  # 21 stay: 24
        model[2].weight[[3, 4, 5, 6, 7]] = 0  # 19 stay: 24, all
    return model


def test_widths_are_multiples_and_the_report_says_what_that_cost() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    model, dense, least = _wide(), _wide(), _wide()
    report, smallest = lf.minimize(model, x, multiple_of=8), lf.minimize(least, x)
    assert [least[0].out_features, least[2].out_features] == [21, 19]
    assert [model[0].out_features, model[2].out_features] == [24, 24]
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    filling = {kept.tensor: kept for kept in report.kept}
    assert {name: kept.channels for name, kept in filling.items()} == {"0.weight": 3, "2.weight": 5}
    assert all("multiple of 8" in kept.reason for kept in report.kept)
    assert sum(kept.parameters for kept in report.kept) == report.parameters_after - smallest.parameters_after
    assert "fill the width up to a multiple of 8 (" in str(report)
    assert lf.minimize(model, x, multiple_of=8).changes == ()


@pytest.mark.parametrize("name", ["residual", "grouped", "separable", "stream", "attention_fused"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_network_stays_exact_and_no_larger(name: str, pattern: str) -> None:
    model, inputs = build(name, pattern), ZOO[name].inputs()
    dense = deepcopy(model)
    report = lf.minimize(model, inputs, multiple_of=4)
    assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12
    assert report.parameters_after <= report.parameters_before
    before = dict(dense.named_parameters())
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1 and key in before and parameter.shape != before[key].shape:
            assert len(parameter) % 4 == 0, key


@pytest.mark.parametrize("name", ["mlp", "separable", "flatten", "two_outputs", "excited", "gated", "stream"])
def test_parameters_left_are_those_that_minimize_leaves(name: str) -> None:
    """In these networks nothing holds what the analysis calls dead."""
    model, inputs = build(name, "rows"), ZOO[name].inputs()
    structure = read_structure(model, inputs)
    nothing = torch.zeros(structure.count, dtype=torch.bool)
    dead = ~live_groups(structure)
    dead[list(structure.pinned)] = False
    left = [parameters_left(structure, removed) for removed in (nothing, dead)]
    report = lf.minimize(model, inputs)
    assert left == [report.parameters_before, report.parameters_after] and left[0] > left[1]


def test_bad_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match=r"minimize\(multiple_of=0\): expected at least 1"):
        lf.minimize(_wide(), torch.randn(4, 5, dtype=torch.float64), multiple_of=0)
