"""minimize on the whole zoo: exact, idempotent, never larger, and training goes on."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import PATTERNS, ZOO, build, error_of, run

CASES = [(name, pattern) for name in ZOO for pattern in PATTERNS]


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_same_function_on_other_batches_and_sizes(name: str, pattern: str) -> None:
    entry, model = ZOO[name], build(name, pattern)
    dense = deepcopy(model)
    report = lf.minimize(model, entry.inputs())
    assert report.max_relative_error is not None and report.max_relative_error <= 1e-12
    for batch, seed in ((5, 1), (1, 7), (9, 8)):
        inputs = entry.inputs(batch, seed=seed)
        assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12
    if entry.any_size:
        inputs = entry.inputs(6, grow=5, seed=9)
        assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_never_larger_and_idempotent(name: str, pattern: str) -> None:
    entry, model = ZOO[name], build(name, pattern)
    before = sum(p.numel() for p in model.parameters())
    kinds = {type(module) for module in model.modules()}
    lf.minimize(model, entry.inputs())
    first = {key: value.clone() for key, value in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) <= before
    again = lf.minimize(model, entry.inputs())
    assert again.changes == () and again.parameters_after == again.parameters_before
    assert model.state_dict().keys() == first.keys()
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())
    assert {type(module) for module in model.modules()} <= kinds
