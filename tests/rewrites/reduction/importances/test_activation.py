"""Activation: against the energy of each contribution."""

import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def _kept(model: nn.Sequential, first: torch.Tensor) -> list[int]:
    return [int((first == row).all(1).nonzero()) for row in model[0].weight.detach()]


def test_activation_against_the_energy_of_each_contribution() -> None:
    model, x = _network(), torch.randn(300, 5, dtype=torch.float64)
    hidden = model[:2](x).detach()
    energy = torch.stack([(hidden[:, i : i + 1] * model[2].weight[:, i].detach()).square().sum() for i in range(8)])
    first = model[0].weight.detach().clone()
    lf.prune(model, x, keep=0.5, of="channels", importance="activation", batches=[x])
    assert _kept(model, first) == sorted(energy.topk(4).indices.tolist())


@pytest.mark.parametrize("name", ["residual", "attention_fused", "grouped", "words", "transposed"])
@pytest.mark.parametrize("importance", ["activation", "reconstruction"])
def test_calibrated_without_data_on_any_network(name: str, importance) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    report = lf.prune(model, inputs, keep=0.6, of="channels", importance=importance, compensate="least-squares")
    assert report.parameters_after < report.parameters_before
