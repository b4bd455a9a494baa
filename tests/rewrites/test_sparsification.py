"""sparsify: exactly the asked share, the right weights, and masks that say so."""

import numpy as np
import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build, weights


@pytest.mark.parametrize("name", ["mlp", "residual", "multiplier", "shared_linear", "option_a"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_exact_share_and_masks(name: str, sparsity: float) -> None:
    model = build(name)
    report = lf.sparsify(model, sparsity)
    competing = {id(w): w for w in weights(model)}.values()
    total = sum(w.numel() for w in competing)
    assert sum(int((w == 0).sum()) for w in competing) == round(sparsity * total)
    assert lf.sparsity_of(model) == pytest.approx(sparsity, abs=1 / total)
    named = dict(model.named_parameters())
    assert sum(mask.numel() for mask in report.masks.values()) == total
    for key, mask in report.masks.items():
        assert torch.equal(named[key] != 0, mask)


def test_magnitude_keeps_the_largest() -> None:
    model, dense = build("residual"), build("residual")
    lf.sparsify(model, 0.8)
    old = np.concatenate([w.detach().abs().flatten().numpy() for w in weights(dense)])
    new = np.concatenate([w.detach().abs().flatten().numpy() for w in weights(model)])
    threshold = np.sort(old)[round(0.8 * len(old))]
    assert np.array_equal(new, np.where(old >= threshold, old, 0))


def test_zeros_grow_nested() -> None:
    model = build("residual")
    zeros = [torch.zeros_like(w, dtype=torch.bool) for w in weights(model)]
    for sparsity in (0.3, 0.6, 0.6, 0.95):
        lf.sparsify(model, sparsity)
        now = [w == 0 for w in weights(model)]
        assert all(bool(new[old].all()) for old, new in zip(zeros, now, strict=True))
        zeros = now


def test_connected_empties_rows_and_columns() -> None:
    """Against numpy, and: far more rows and columns are empty than by magnitude."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 30)) * rng.gamma(1.0, size=(40, 1)) * rng.gamma(1.0, size=(1, 30))
    model = nn.Sequential(nn.Linear(30, 40, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(weight))
    model.double()
    weight = model[0].weight.detach().numpy().copy()
    score = np.abs(weight) * np.linalg.norm(weight, axis=1)[:, None] * np.linalg.norm(weight, axis=0)[None]
    lf.sparsify(model, 0.9, criterion="connected")
    kept = score >= np.sort(score.ravel())[round(0.9 * score.size)]
    assert np.array_equal(model[0].weight.detach().numpy() != 0, kept)


def test_state_of_zeroed_weights_is_zero() -> None:
    model = build("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    lf.sparsify(model, 0.5, optimizers=[optimizer])
    weight = model[0].weight
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], (weight != 0).double())
    assert torch.equal(optimizer.state[model[0].bias]["momentum_buffer"], torch.ones(16, dtype=torch.float64))


def test_then_minimize_is_exact() -> None:
    model = build("conv_norm")
    lf.sparsify(model, 0.97, criterion="connected")
    assert (lf.minimize(model, ZOO["conv_norm"].inputs()).max_relative_error or 0) <= 1e-12


def test_bad_arguments() -> None:
    for sparsity in (-0.1, 1.0, 90, float("nan")):
        with pytest.raises(ValueError, match=r"expected a share in \[0, 1\)"):
            lf.sparsify(build("mlp"), sparsity)
    with pytest.raises(ValueError, match="criterion='size'"):
        lf.sparsify(build("mlp"), 0.5, criterion="size")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="found none"):
        lf.sparsify(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), 0.5)
