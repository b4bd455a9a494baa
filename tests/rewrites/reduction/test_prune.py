"""prune: the right channels, counted and checked against networks built by hand."""

import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build, run


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ("l1", [1, 3]),  # sums of absolute values: 2, 5, 3, 4
        ("l2", [2, 3]),  # norms: sqrt 2, sqrt 5, 3, 4
    ],
)
def test_keeps_the_most_important_channels(importance, expected: list[int]) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    rows = [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 3, 0, 0], [0, 0, 0, 4, 0]]
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(rows))
    first, second = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    lf.prune(model, torch.randn(3, 5, dtype=torch.float64), keep=0.5, of="channels", importance=importance)
    assert torch.equal(model[0].weight, first[expected]) and torch.equal(model[2].weight, second[:, expected])


def test_same_as_a_smaller_network_built_by_hand() -> None:
    """Widths 8 -> 6 everywhere: parameters and FLOPs of the hand-built network, outputs of the masked one."""
    from tests.zoo import Head, Residual

    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), Residual(width, width), Head(width)).double().eval()

    torch.manual_seed(0)
    model, x = make(8), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    report = lf.prune(model, x, keep=0.75, of="channels")
    by_hand = make(6)
    assert report.parameters_after == sum(p.numel() for p in by_hand.parameters())
    assert report.flops_after == lf.count_flops(by_hand, x)
    by_hand.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(run(by_hand, (x,)), run(model, (x,)))


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo_stays_rectangular(name: str) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    optimizer = torch.optim.Adam(model.parameters())
    report = lf.prune(model, inputs, keep=0.5, of="channels", optimizers=[optimizer])
    assert report.parameters_after < report.parameters_before
    assert run(model, inputs).isfinite().all()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in model.parameters()]


def test_at_least_one_channel_stays_and_all_of_them_is_nothing() -> None:
    model = build("mlp")
    assert lf.prune(model, ZOO["mlp"].inputs(), keep=1.0, of="channels").changes == ()
    lf.prune(model, ZOO["mlp"].inputs(), keep=0.001, of="channels")
    assert [model[i].out_features for i in (0, 2, 4, 6)] == [1, 1, 1, 4]


def test_nothing_to_prune_and_unknown_importance() -> None:
    with pytest.raises(ValueError, match="at least one hidden width"):
        lf.prune(nn.Linear(3, 4), torch.randn(2, 3))
    with pytest.raises(ValueError, match="expected one of 'l1', 'l2', 'taylor'"):
        lf.prune(build("mlp"), ZOO["mlp"].inputs(), importance="l3")
