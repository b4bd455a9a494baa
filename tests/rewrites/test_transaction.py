"""The frame of every rewrite: it measures, compares, and puts everything back if something fails."""

import math
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fold.errors import ArgumentError, RewriteError
from lightning_fold.report import Kept
from lightning_fold.rewrites.transaction import (
    asking_attributes,
    check_finite,
    compare_shapes,
    float_tensors,
    outputs,
    relative_error,
    rewrite,
)
from lightning_fold.surgery.transaction import Surgery
from tests.zoo import ZOO, build


def _network() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()


def _halve(surgery: Surgery) -> list[Kept]:
    for name, dim in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        surgery.select(name, dim, torch.tensor([0, 2]))
    return [Kept("0.weight", 2, "stays")]


def _break(surgery: Surgery) -> list[Kept]:
    surgery.select("0.weight", 0, torch.tensor([0, 2]))
    return []


def _fail(surgery: Surgery) -> list[Kept]:
    _halve(surgery)
    raise KeyError("a bug")


def test_report_counts_parameters_and_names_the_changes() -> None:
    model, x = _network()
    report = rewrite("halve", model, x, [], _halve)
    assert (report.method, report.max_relative_error) == ("halve", None)
    assert (report.parameters_before, report.parameters_after) == (3 * 4 + 4 + 4 * 2 + 2, 3 * 2 + 2 + 2 * 2 + 2)
    assert (report.flops_before, report.flops_after) == (2 * 5 * (12 + 8), 2 * 5 * (6 + 4))
    assert [(change.tensor, change.before, change.after) for change in report.changes] == [
        ("0.weight", (4, 3), (2, 3)),
        ("0.bias", (4,), (2,)),
        ("2.weight", (2, 4), (2, 2)),
    ]
    assert report.kept == (Kept("0.weight", 2, "stays"),)


@pytest.mark.parametrize(
    ("change", "exact", "error"),
    [(_halve, True, RewriteError), (_break, False, RewriteError), (_fail, False, KeyError)],
)
def test_network_and_optimizer_are_as_before_where_it_fails(change: Callable, exact: bool, error: type) -> None:
    model, x = _network()
    optimizer, parameters = torch.optim.SGD(model.parameters(), 0.1), list(model.parameters())
    before = deepcopy(model.state_dict())
    with pytest.raises(error):
        rewrite("change", model, x, [optimizer], change, exact=exact)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(new is old for new, old in zip(optimizer.param_groups[0]["params"], parameters, strict=True))


@pytest.mark.parametrize(("size", "accepted"), [(1e-13, True), (1e-6, False)])
def test_exact_allows_rounding_alone(size: float, accepted: bool) -> None:
    def nudge(surgery: Surgery) -> list[Kept]:
        surgery.transform("2.weight", lambda weight: weight * (1 + size))
        return []

    model, x = _network()
    if accepted:
        assert 0 < float(rewrite("nudge", model, x, [], nudge, exact=True).max_relative_error or 0) < 1e-12
    else:
        with pytest.raises(RewriteError, match="nudge"):
            rewrite("nudge", model, x, [], nudge, exact=True)


def test_relative_error_against_numpy() -> None:
    found, expected = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    want = max(np.abs(f - e).max() / np.abs(e).max() for f, e in zip(found.numpy(), expected.numpy(), strict=True))
    assert relative_error(list(found), list(expected)) == pytest.approx(want)
    infinite = torch.tensor([1.0, math.inf])
    assert relative_error([infinite], [infinite.clone()]) == 0 == relative_error([], [])
    assert relative_error([torch.ones(2)], [torch.ones(3)]) == math.inf
    assert relative_error([torch.tensor([2.0, math.inf])], [torch.tensor([1.0, 4.0])]) == math.inf
    assert math.isnan(relative_error([torch.tensor([math.nan])], [torch.ones(1)]))


def test_outputs_are_the_floats_in_evaluation_mode() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.9)).train(), torch.randn(4, 3)
    assert torch.equal(outputs(model, x)[0], nn.functional.linear(x, model[0].weight, model[0].bias))
    assert model.training
    nested = {"a": [torch.ones(1), torch.ones(1, dtype=torch.int64)], "b": (None, torch.zeros(2))}
    assert [value.tolist() for value in float_tensors(nested)] == [[1.0], [0.0, 0.0]]


def test_shapes_that_appear_vanish_or_change_are_changes() -> None:
    found = compare_shapes({"a": (1,), "b": (2,), "c": (3,)}, {"a": (1,), "b": (4,), "d": (5,)})
    assert {(c.tensor, c.before, c.after) for c in found} == {("b", (2,), (4,)), ("c", (3,), None), ("d", None, (5,))}


@pytest.mark.parametrize(
    ("kind", "value", "fine"), [("p", math.inf, False), ("b", -math.inf, True), ("b", math.nan, False)]
)
def test_masks_may_hold_infinities_and_nothing_nan(kind: str, value: float, fine: bool) -> None:
    model, tensor = nn.Module(), torch.tensor([0.0, value])
    model.register_parameter("x", nn.Parameter(tensor)) if kind == "p" else model.register_buffer("x", tensor)
    if fine:
        check_finite("fold", model)
    else:
        with pytest.raises(ArgumentError, match=r"fold.*\bx\b"):
            check_finite("fold", model)


@pytest.mark.parametrize(("name", "tried"), [("attention_fused", [True, False]), ("mlp", [True])])
def test_attributes_are_trusted_first_and_again_only_where_there_are_any(name: str, tried: list[bool]) -> None:
    calls = []

    def run(ask: bool):
        calls.append(ask)
        raise RewriteError(f"{ask}")

    with pytest.raises(RewriteError, match=str(tried[-1])):
        asking_attributes(run, build(name), ZOO[name].inputs())
    assert calls == tried
