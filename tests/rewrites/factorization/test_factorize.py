"""factorize: enough rank gives the same function; budgets are kept; optimizers follow."""

import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build, error_of, run

CONVS = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": (3, 5), "stride": (2, 3), "padding": (1, 2)},
    "dilation": {"kernel_size": 3, "dilation": (2, 1), "padding": (2, 1)},
    "same": {"kernel_size": (3, 5), "padding": "same"},
    "reflect": {"kernel_size": (5, 3), "padding": (2, 1), "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": "same", "padding_mode": "circular", "dilation": 2},
    "no_bias": {"kernel_size": 3, "bias": False},
}


def _low_rank(weight: torch.Tensor, rank: int, separable: bool) -> None:
    """Give ``weight`` a matrix of rank ``rank``, of the one shape or of the other."""
    rows, columns, height, width = weight.shape
    with torch.no_grad():
        if separable:
            across, down = _randn(rows, rank, width), _randn(rank, columns, height)
            weight.copy_(torch.einsum("orw,rch->ochw", across, down))
        else:
            weight.copy_((_randn(rows, rank) @ _randn(rank, columns * height * width)).reshape(weight.shape))


@pytest.mark.parametrize("separable", [False, True], ids=["whole_then_point", "column_then_row"])
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS.keys())
def test_convolution_of_low_rank_keeps_its_function(options: dict, separable: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, **options), nn.ReLU()).double()
    _low_rank(model[0].weight, 3, separable)
    x = torch.randn(2, 8, 12, 13, dtype=torch.float64)
    expected, parameters = model(x), sum(p.numel() for p in model.parameters())
    report = lf.factorize(model, x, keep=0.6)
    assert report.parameters_after <= 0.6 * parameters
    _, second = model[0]
    assert (second.kernel_size == (1, 1)) != separable
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    other = torch.randn(1, 8, 17, 15, dtype=torch.float64)
    assert model(other).shape[1] == 12


def test_linear_of_low_rank_keeps_its_function() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 25, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(_randn(30, 4) @ _randn(4, 20))
        model[2].weight.copy_(_randn(25, 5) @ _randn(5, 30))
    x = torch.randn(7, 20, dtype=torch.float64)
    expected = model(x)
    lf.factorize(model, x, keep=(4 * 50 + 30 + 5 * 55) / (600 + 30 + 750))
    assert [model[0][0].out_features, model[2][0].out_features] == [4, 5]
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_truncation_is_the_best_of_its_rank() -> None:
    """Eckart-Young, against numpy's singular values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30, bias=False)).double()
    weight = model[0].weight.detach().clone()
    lf.factorize(model, torch.randn(2, 40, dtype=torch.float64), keep=0.4)
    first, second = model[0]
    rank = first.out_features
    error = float((second.weight @ first.weight - weight).detach().norm())
    values = torch.linalg.svdvals(weight)
    assert rank == int(0.4 * 1200) // 70
    assert error == pytest.approx(float(values[rank:].norm()), rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "conv_norm", "residual", "separable", "shared_linear", "flatten", "option_a"])
@pytest.mark.parametrize("keep", [0.8, 0.95])
def test_budget_is_kept_and_optimizers_follow(name: str, keep: float) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    groups = [[p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False)]
    optimizer = torch.optim.Adam([{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1]}], lr=1e-2)
    _step(model, optimizer, inputs)
    biases = {id(p): optimizer.state[p]["exp_avg"].clone() for p in groups[1]}
    report = lf.factorize(model, inputs, keep=keep, optimizers=[optimizer])
    assert report.parameters_after == sum(p.numel() for p in model.parameters())
    assert report.parameters_after <= keep * report.parameters_before
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) and {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert all(p.dim() > 1 for p in optimizer.param_groups[0]["params"])
    for parameter in optimizer.param_groups[1]["params"]:
        assert torch.equal(optimizer.state[parameter]["exp_avg"], biases[id(parameter)])
    before = [p.detach().clone() for p in model.parameters()]
    _step(model, optimizer, inputs)
    assert all(bool((p != old).any()) for p, old in zip(model.parameters(), before, strict=True))


def test_layers_that_would_not_shrink_stay() -> None:
    model = build("residual")
    x = ZOO["residual"].inputs()[0]
    expected = run(model, (x,))
    report = lf.factorize(model, x, keep=1.0)
    assert report.changes == () and len(report.kept) > 3
    assert error_of(run(model, (x,)), expected) == 0


def test_shared_weights_are_left_alone() -> None:
    model = build("shared_linear")
    lf.factorize(model, ZOO["shared_linear"].inputs(), keep=0.95)
    assert type(model.left) is nn.Linear and model.left.weight is model.right.weight


def test_bad_arguments() -> None:
    x = ZOO["mlp"].inputs()
    for keep in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"expected a share in \(0, 1\]"):
            lf.factorize(build("mlp"), x, keep=keep)
    with pytest.raises(ValueError, match=r"keep=0.01\): rank 1 in every layer still leaves 0\.\d+"):
        lf.factorize(build("mlp"), x, keep=0.01)
    with pytest.raises(ValueError, match="found none"):
        lf.factorize(nn.Linear(9, 9), torch.randn(2, 9))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[torch.Tensor, ...]) -> None:
    optimizer.zero_grad()
    model(*inputs).square().mean().backward()
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter) + (0 if parameter.grad is None else parameter.grad)
    optimizer.step()
    optimizer.zero_grad()


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)
