"""Importance: each kind against a computation of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.reduction.importances.taylor import taylor_score
from tests.zoo import ZOO, build


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def _kept(model: nn.Sequential, first: torch.Tensor) -> list[int]:
    return [int((first == row).all(1).nonzero()) for row in model[0].weight.detach()]


def test_taylor_against_weight_times_gradient() -> None:
    model = _network()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))
    loss = F.cross_entropy(model(x), y)
    weight, bias = torch.autograd.grad(loss, [model[0].weight, model[0].bias])
    expected = ((weight * model[0].weight).sum(1) + bias * model[0].bias).abs().detach()
    (group,) = (g for g in lf.channel_groups(model, x) if g.pinned is None)
    score = taylor_score(model, [(x, y)], lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]))
    torch.testing.assert_close(score(model, group).double(), expected, rtol=1e-5, atol=1e-8)
    assert all(parameter.grad is None for parameter in model.parameters())
    first = model[0].weight.detach().clone()
    lf.prune(
        model,
        x,
        keep=0.5,
        of="channels",
        importance="taylor",
        batches=[(x, y)],
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
    )
    assert _kept(model, first) == sorted(expected.topk(4).indices.tolist())


@pytest.mark.parametrize("frozen", [["0.weight", "0.bias"], ["0.weight", "0.bias", "2.weight", "2.bias"]])
def test_taylor_of_frozen_layers_is_that_of_trained_ones(frozen: list[str]) -> None:
    model, x = _network(), torch.randn(20, 5, dtype=torch.float64)
    (group,) = (g for g in lf.channel_groups(model, x) if g.pinned is None)
    expected = taylor_score(model, [x], lambda net, batch: net(batch).square().sum())(model, group)
    parameters = dict(model.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    model.register_parameter("steps", nn.Parameter(torch.tensor(3), requires_grad=False))
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    found = taylor_score(model, [x], lambda net, batch: net(batch).square().sum())(model, group)
    assert torch.equal(found, expected) and float(found.min()) > 0
    with pytest.raises(ZeroDivisionError):
        taylor_score(model, [x], lambda net, batch: net(batch).sum() * (1 // 0))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert all(parameter.grad is None for parameter in model.parameters())


def test_activation_against_the_energy_of_each_contribution() -> None:
    model, x = _network(), torch.randn(300, 5, dtype=torch.float64)
    hidden = model[:2](x).detach()
    energy = torch.stack([(hidden[:, i : i + 1] * model[2].weight[:, i].detach()).square().sum() for i in range(8)])
    first = model[0].weight.detach().clone()
    lf.prune(model, x, keep=0.5, of="channels", importance="activation", batches=[x])
    assert _kept(model, first) == sorted(energy.topk(4).indices.tolist())


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


def test_a_function_of_the_users_own() -> None:
    model, x = _network(), torch.randn(4, 5, dtype=torch.float64)
    first = model[0].weight.detach().clone()
    lf.prune(model, x, keep=0.5, of="channels", importance=lambda network, group: torch.arange(group.size).flip(0))
    assert _kept(model, first) == [0, 1, 2, 3]


@pytest.mark.parametrize("scores", [torch.ones(3), torch.full((8,), float("nan"))])
def test_scores_of_another_shape_or_nan_are_refused(scores) -> None:
    with pytest.raises(ValueError, match="one for each channel"):
        lf.prune(_network(), torch.randn(4, 5, dtype=torch.float64), importance=lambda network, group: scores)


def test_taylor_needs_batches_and_a_loss() -> None:
    with pytest.raises(ValueError, match=r"importance='taylor'.*batches=.*loss="):
        lf.prune(_network(), torch.randn(4, 5, dtype=torch.float64), importance="taylor")


@pytest.mark.parametrize("name", ["residual", "attention_fused", "grouped", "words", "transposed"])
@pytest.mark.parametrize("importance", ["activation", "reconstruction"])
def test_calibrated_without_data_on_any_network(name: str, importance) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    report = lf.prune(model, inputs, keep=0.6, of="channels", importance=importance, compensate="least-squares")
    assert report.parameters_after < report.parameters_before
