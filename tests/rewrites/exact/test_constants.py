"""Constants of channels that leave: into biases, running means and new biases, or into one channel before padding."""

from copy import deepcopy

import torch
from torch import Tensor, nn

import lightning_fold as lf
from tests.zoo import Head, error_of, randomise, run


def test_constant_moves_into_the_bias() -> None:
    """By hand: unit 0 is relu(bias) whatever the input; its weight times that is added to the consumer's bias."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias[0] = 0.75
    weight, bias = model[2].weight.detach().clone(), model[2].bias.detach().clone()
    lf.minimize(model, torch.randn(4, 3, dtype=torch.float64))
    torch.testing.assert_close(model[2].bias.detach(), bias + 0.75 * weight[:, 0], rtol=1e-14, atol=0)
    assert torch.equal(model[2].weight, weight[:, 1:])


def test_constant_moves_into_the_running_mean_and_into_a_new_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Conv2d(5, 3, 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.5
        model[2].weight[2] = 0
    randomise(model)
    with torch.no_grad():
        model[0].bias[1] = 0.5
    model.eval()
    weight = model[2].weight.detach().clone()
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    expected = model(x)
    lf.minimize(model, x)
    assert model[2].bias is None and model[4].bias is not None
    kept = [0, 1, 3, 4]
    moved = -0.5 * weight[kept, 1].sum((1, 2))
    torch.testing.assert_close(model[3].running_mean, moved, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-13)


def test_constant_before_zero_padding_is_carried_by_one_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), Head(3)).double()
    with torch.no_grad():
        model[0].weight[:5] = 0
        model[0].bias[:5] = torch.tensor([0.3, 2.0, 0.1, -1.0, 0.7])  # the fourth is zero behind the ReLU
    dense, x = deepcopy(model), torch.randn(4, 2, 6, 6, dtype=torch.float64)
    lf.minimize(model, x)
    assert model[0].out_channels == 3 + 1
    assert error_of(model(x).detach(), dense(x).detach()) <= 1e-12


def test_constants_held_by_a_shared_weight() -> None:
    """A weight that is used twice cannot take a constant; what a kept channel reads through it must stay."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.shared, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.shared(self.shared(self.one(x)).relu()).relu())

    torch.manual_seed(0)
    model = Shared().double()
    with torch.no_grad():
        model.one.weight.zero_()
    dense, x = deepcopy(model), torch.randn(4, 4, dtype=torch.float64)
    lf.minimize(model, x)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
