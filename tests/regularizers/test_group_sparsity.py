from itertools import pairwise

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.models import MLP
from lightning_fold.regularizers import GroupSparsity


def make(hidden=(5, 4)):
    torch.manual_seed(0)
    network = MLP(6, list(hidden), 3).double()
    return network, GroupSparsity(network, lf.channel_groups(network, torch.randn(2, 6, dtype=torch.float64)))


def channels(network):
    """For each hidden unit what writes it (row and bias) and what reads it (column), by a plain loop."""
    linears = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    for before, after in pairwise(linears):
        for unit in range(before.out_features):
            yield torch.cat([before.weight[unit], before.bias[unit : unit + 1], after.weight[:, unit]]).detach()


def test_value_is_the_sum_of_the_channels_norms():
    network, penalty = make()
    expected = sum(float(weights.pow(2).sum() ** 0.5) for weights in channels(network))
    assert float(penalty.value().detach()) == pytest.approx(expected, rel=1e-12)
    assert [len(norms) for norms in penalty.norms()] == [5, 4]


def test_value_can_be_differentiated():
    network, penalty = make([5])
    penalty.value().backward()
    first, second = (layer for layer in network.layers if isinstance(layer, nn.Linear))
    norms = torch.stack([weights.norm() for weights in channels(network)])
    torch.testing.assert_close(first.weight.grad, (first.weight / norms[:, None]).detach())
    torch.testing.assert_close(second.weight.grad, (second.weight / norms).detach())


def test_channel_that_is_empty_has_gradient_zero():
    network, penalty = make([5])
    first, second = (layer for layer in network.layers if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight[1], first.bias[1], second.weight[:, 1] = 0, 0, 0
    penalty.value().backward()
    rows = torch.cat([first.weight.grad, first.bias.grad[:, None], second.weight.grad.T], dim=1)
    lengths = torch.tensor([1, 0, 1, 1, 1], dtype=torch.float64)  # the gradient of a norm is w / |w|
    torch.testing.assert_close(rows.norm(dim=1), lengths)


def test_shrink_is_the_proximal_step():
    """w <- w max(0, 1 - t / ||w||), which also minimizes ||v - w||^2 / 2 + t ||v||."""
    network, penalty = make([5])
    before = list(channels(network))
    threshold = float(torch.stack([weights.norm() for weights in before]).median())
    penalty.shrink(threshold)
    after = list(channels(network))
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old * max(0.0, 1 - threshold / float(old.norm())))

        def objective(candidate, old=old):
            return float((candidate - old).square().sum() / 2 + threshold * candidate.norm())

        noise = torch.randn(20, len(old), dtype=old.dtype, generator=torch.Generator().manual_seed(1))
        assert all(objective(new) <= objective(new + 1e-3 * step) for step in noise)
    zero = [bool((weights == 0).all()) for weights in after]
    assert zero == [float(weights.norm()) <= threshold for weights in before]
    assert 0 < sum(zero) < 5


def test_weight_between_two_channels_shrinks_with_both():
    network, penalty = make()
    first, middle, _ = (layer for layer in network.layers if isinstance(layer, nn.Linear))
    norms = [weights.norm() for weights in channels(network)]
    left, right = ((1 - 0.1 / torch.stack(part)) for part in (norms[:5], norms[5:]))
    expected = middle.weight.detach() * right[:, None] * left
    rows = first.weight.detach() * left[:, None]
    penalty.shrink(0.1)
    torch.testing.assert_close(middle.weight.detach(), expected)
    torch.testing.assert_close(first.weight.detach(), rows)


def test_zero_takes_nothing_away():
    network, penalty = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    penalty.shrink(0.0)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_empty_channels_stay_empty_and_finite():
    network, penalty = make([5])
    penalty.shrink(100.0)
    penalty.shrink(0.1)
    assert all(float(weights.abs().max()) == 0 for weights in channels(network))
    assert float(penalty.value()) == 0
    assert len(list(channels(network))) == 5


def test_batchnorm_belongs_to_its_channel():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3))
    inputs = torch.randn(2, 2, 6, 6)
    with torch.no_grad():
        network[1].weight.uniform_(0.5, 1.5)
        network[1].bias.normal_()
    penalty = GroupSparsity(network, lf.channel_groups(network, inputs))
    squares = network[0].weight.square().sum((1, 2, 3)) + network[3].weight.square().sum((0, 2, 3))
    squares = squares + network[1].weight.square() + network[1].bias.square()
    torch.testing.assert_close(penalty.norms()[0], squares.sqrt())
