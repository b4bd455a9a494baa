"""Methods: every one answers the same call."""

import inspect

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.method import Method


@pytest.mark.parametrize("method", [lf.prune, lf.fold, lf.factorize])
@pytest.mark.parametrize("of", ["parameters", "channels"])
def test_one_call_serves_every_method(method: Method, of: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)), torch.randn(4, 12)
    options = {"of": of, "batches": [x, x], "skip": [], "repair": "none"}
    named = options.keys() & inspect.signature(method).parameters
    report = method(model, x, keep=0.25, **{name: options[name] for name in named})
    assert report.method == method.__name__
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.parameters_after < report.parameters_before == 2 * (12 * 12 + 12)
    assert report.max_relative_error is None
