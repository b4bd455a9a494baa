"""Reconstruction: channels leave in the order in which the others make up for them."""

import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.calibration import LazyCalibration
from lightning_fold.rewrites.reduction.importances.activation import Activation
from lightning_fold.rewrites.reduction.importances.reconstruction import Reconstruction
from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.structure.groups import group_channels, read_structure


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


def _scores(importance: Activation, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    context = SelectionContext(model, read_structure(model, x), LazyCalibration(model, x, [x]))
    (group,) = (g for g in group_channels(context.structure) if g.pinned is None)
    return importance.prepare(context)(model, group)


def test_order_is_that_of_trying_every_channel_with_a_refit_of_the_others() -> None:
    model, x = _network(), torch.randn(200, 5, dtype=torch.float64)
    hidden = model[:2](x).detach()
    targets, left, expected = hidden @ model[2].weight.detach().T, list(range(8)), torch.zeros(8)

    def error(channels: list[int]) -> float:
        found = torch.linalg.lstsq(hidden[:, channels], targets).solution if channels else torch.zeros(0, 3).double()
        return float((targets - hidden[:, channels] @ found).square().sum())

    for rank in range(8):
        gone = min(left, key=lambda channel: error([i for i in left if i != channel]))
        expected[gone] = rank
        left.remove(gone)
    assert _scores(Reconstruction(), model, x).tolist() == expected.tolist()


def test_flattened_channels_are_scored_by_their_energy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    x = torch.randn(20, 3, 2, 2, dtype=torch.float64)
    energy = (model[:3](x).square().mean(0) * model[3].weight.square().sum(0)).reshape(4, 4).sum(1).detach()
    torch.testing.assert_close(_scores(Reconstruction(), model, x), energy / energy.sum())
    torch.testing.assert_close(_scores(Activation(), model, x), energy / energy.sum())
