"""Reconstruction: channels leave in the order in which the others make up for them."""

import torch
from torch import nn

import lightning_fold as lf


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def test_reconstruction_leaves_out_what_the_others_make_up_for() -> None:
    """Twice the same channel, with large weights: one of them goes first; a small one of its own stays."""
    model, x = _network(), torch.randn(300, 5, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = model[0].weight[2], model[0].bias[2]
        model[2].weight[:, 5] *= 5
        model[2].weight[:, 2] *= 5
    dense, first = model(x).detach(), model[0].weight.detach().clone()
    assert bool((first[5] == first[2]).all())
    lf.prune(
        model, x, keep=0.875, of="channels", importance="reconstruction", compensate="least-squares", batches=[x, x]
    )
    assert model[0].out_features == 7
    torch.testing.assert_close(model(x), dense, rtol=0.02, atol=0.02)
