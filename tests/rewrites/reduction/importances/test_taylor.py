"""Taylor: against weight times gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.reduction.importances.taylor import taylor_score


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


def test_taylor_needs_batches_and_a_loss() -> None:
    with pytest.raises(ValueError, match=r"importance='taylor'.*batches=.*loss="):
        lf.prune(_network(), torch.randn(4, 5, dtype=torch.float64), importance="taylor")
