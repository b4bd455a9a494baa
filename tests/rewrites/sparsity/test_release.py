"""release: zeros come back as noise, survivors and biases stay bit for bit."""

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from tests.zoo import ZOO, build, run


def _released(max_drift: float = 0.02, seed: int = 0) -> tuple[nn.Module, nn.Module, Tensor]:
    dense, model = build("residual", "scattered"), build("residual", "scattered")
    (x,) = ZOO["residual"].inputs(16)
    lf.release(model, max_drift=max_drift, batches=[x], seed=seed)
    return dense, model, x


def test_zeros_are_gone_and_the_rest_is_untouched() -> None:
    dense, model, _ = _released()
    for (name, old), new in zip(dense.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(new[old != 0], old[old != 0])
        if old.dim() > 1:
            assert bool((new != 0).all()) and bool((old == 0).any()), name
        else:
            assert torch.equal(new, old)


@pytest.mark.parametrize("max_drift", [0.003, 0.02, 0.2])
def test_outputs_move_by_no_more_than_asked_and_nearly_that(max_drift: float) -> None:
    dense, model, x = _released(max_drift)
    before, after = run(dense, (x,)), run(model, (x,))
    drift = float((after - before).norm() / before.norm())
    assert 0.5 * max_drift <= drift <= max_drift


def test_noise_has_the_scale_of_the_survivors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 5)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(200, 300) * 3.0)
        model[0].weight[:, :150] = 0
    lf.release(model, max_drift=0.1)
    noise = model[0].weight[:, :150].detach()
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) / 0.3 - 1) < 0.02


def test_half_precision_whose_sum_of_squares_overflows() -> None:
    torch.manual_seed(0)
    model = nn.Linear(512, 512).half()
    nn.init.normal_(model.weight)
    with torch.no_grad():
        model.weight[:100] = 0
    before = model.weight.detach().clone()
    lf.release(model, max_drift=0.5)
    assert model.weight.dtype == torch.float16 and torch.equal(model.weight[100:], before[100:])
    assert abs(float(model.weight.detach()[:100].float().std()) / 0.5 - 1) < 0.02


def test_seed_makes_it_reproducible() -> None:
    one, two, other = (_released(seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(one[1].conv1.weight, two[1].conv1.weight)
    assert not torch.equal(one[1].conv1.weight, other[1].conv1.weight)


def test_moments_stay_for_survivors_and_are_zero_for_the_released() -> None:
    model = build("mlp", "scattered")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    with torch.no_grad():
        model[2].weight[:, ::2] = 0
    survived = model[2].weight != 0
    moments = optimizer.state[model[2].weight]["exp_avg"].clone()
    lf.release(model, max_drift=0.1, optimizers=[optimizer])
    state = optimizer.state[model[2].weight]
    assert float(state["step"]) == 1
    assert torch.equal(state["exp_avg"], torch.where(survived, moments, 0.0))
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}


def test_without_zeros_or_without_drift_nothing_changes() -> None:
    model = build("mlp")
    before = [p.detach().clone() for p in model.parameters()]
    lf.release(model, max_drift=0.5)
    sparse = build("mlp", "scattered")
    zeros = [int((p == 0).sum()) for p in sparse.parameters()]
    lf.release(sparse, max_drift=0.0)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert [int((p == 0).sum()) for p in sparse.parameters()] == zeros


@pytest.mark.parametrize("max_drift", [-0.1, 1.5, float("nan")])
def test_out_of_range(max_drift: float) -> None:
    with pytest.raises(ValueError, match=r"release\(max_drift="):
        lf.release(build("mlp"), max_drift=max_drift)
