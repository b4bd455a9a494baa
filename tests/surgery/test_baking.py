"""bake: computed weights written out, with the optimizers."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from lightning_fold.surgery.baking import bake
from lightning_fold.surgery.editor import NetworkEditor

X = torch.randn(4, 3, dtype=torch.float64)


class Symmetric(nn.Module):
    def forward(self, matrix):
        return matrix.triu() + matrix.triu(1).T


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "compute",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
        lambda layer: prune.l1_unstructured(layer, "weight", amount=4),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_outputs_stay_and_the_layer_is_plain(compute: Callable[[nn.Module], nn.Module], trained: bool) -> None:
    model = nn.Sequential(compute(nn.Linear(3, 3).double()), nn.Linear(3, 2).double())
    model[0].requires_grad_(trained)
    optimizer = torch.optim.Adam(model.parameters())
    with torch.no_grad():
        expected = model.eval()(X)
    bake(NetworkEditor(model, [optimizer]))
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)
    assert type(model[0]) is nn.Linear and set(model[0].state_dict()) == {"weight", "bias"}
    assert not model[0]._forward_pre_hooks and model[0].weight.requires_grad == trained
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    model.load_state_dict(model.state_dict())


def test_moments_behind_a_mask_are_masked() -> None:
    layer = prune.random_unstructured(nn.Linear(3, 2).double(), "weight", amount=3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(X).square().sum().backward()
    optimizer.step()
    mask = layer.weight_mask.clone()
    state = {name: value.clone() for name, value in optimizer.state[layer.weight_orig].items()}
    bake(NetworkEditor(layer, [optimizer]))
    found = optimizer.state[layer.weight]
    assert torch.equal(found["step"], state["step"]) and int((layer.weight == 0).sum()) == 3
    assert all(torch.equal(found[name], state[name] * mask) for name in ("exp_avg", "exp_avg_sq"))


def test_plain_network_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    bake(NetworkEditor(model))
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
