"""Overlay: changed tensors beside a network that is not touched."""

import torch
from torch import nn
from torch.func import functional_call

from lightning_fold.surgery.overlay import Overlay

X = torch.randn(4, 3, dtype=torch.float64)


def test_changes_add_up_beside_the_network() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    overlay = Overlay(model)
    overlay.add("0.bias", torch.ones(2))
    overlay.scale("0.weight", 0, torch.tensor([2.0, 3.0]))
    overlay.scale("0.bias", 0, torch.tensor([2.0, 3.0]))
    expected = (model(X) + 1) * torch.tensor([2.0, 3.0])
    torch.testing.assert_close(functional_call(model, overlay.changed, (X,)), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tensor_is_the_networks_until_it_is_changed() -> None:
    overlay = Overlay(nn.Linear(3, 2))
    assert overlay.tensor("weight") is overlay.model.weight and overlay.changed == {}
    overlay.set("weight", torch.zeros(2, 3))
    assert torch.equal(overlay.tensor("weight"), torch.zeros(2, 3)) and overlay.changed.keys() == {"weight"}
