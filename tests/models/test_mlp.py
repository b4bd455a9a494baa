import pytest
import torch
from torch import nn

from lightning_fold.models import MLP


def test_is_the_composition_of_its_linear_layers():
    torch.manual_seed(0)
    network = MLP(6, [5, 4], 3).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    first, second, last = (module for module in network.modules() if isinstance(module, nn.Linear))
    hidden = (x.reshape(7, 6) @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(network(x), hidden @ last.weight.T + last.bias, rtol=1e-12, atol=1e-12)


def test_without_hidden_layers_it_is_linear():
    network = MLP(6, [], 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 6 * 3 + 3


def test_takes_any_activation_of_torch():
    assert sum(isinstance(module, nn.GELU) for module in MLP(6, [5, 4], 3, activation="GELU").modules()) == 2


@pytest.mark.parametrize("widths", [(0, [5], 3), (6, [-1], 3), (6, [5], 2.5)])
def test_refuses_widths_that_are_no_positive_integers(widths):
    with pytest.raises(ValueError, match="integer of at least 1"):
        MLP(*widths)


@pytest.mark.parametrize("activation", ["relu", "functional"])
def test_refuses_an_unknown_activation(activation):
    with pytest.raises(ValueError, match=f"activation='{activation}'"):
        MLP(6, [5], 3, activation=activation)
