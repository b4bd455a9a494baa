"""repair: BatchNorm statistics are those of the data."""

import pytest
import torch
from torch import nn

import lightning_fold as lf
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
