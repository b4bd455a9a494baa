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


def test_connected_empties_the_weakest_channels() -> None:
    """Against numpy: a weight is as strong as the weaker of the two channels it connects."""
    model = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    first, second, third = (model[i].weight.detach().numpy().copy() for i in (0, 2, 4))

    def strength(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        product = np.sqrt((rows**2).mean(1)) * np.sqrt((columns**2).mean(0))
        return np.sqrt(product) / np.sqrt(product).mean()

    one, two = strength(first, second), strength(second, third)
    scores = [
        np.broadcast_to(one[:, None], first.shape),
        np.minimum(two[:, None], one[None]),
        np.broadcast_to(two[None], third.shape),
    ]
    threshold = np.quantile(np.concatenate([score.ravel() for score in scores]), 0.6)
    masks = lf.sparsify(model, 0.6, criterion="connected", example_inputs=torch.zeros(2, 12).double()).masks
    for index, score in zip((0, 2, 4), scores, strict=True):
        kept = masks[f"{index}.weight"].numpy()
        assert kept[score > threshold * 1.001].all()
        assert not kept[score < threshold * 0.999].any()


def test_connected_needs_inputs() -> None:
    with pytest.raises(ValueError, match="expected example_inputs"):
        lf.sparsify(build("mlp"), 0.5, criterion="connected")


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
    inputs = ZOO["conv_norm"].inputs()
    lf.sparsify(model, 0.9, criterion="connected", example_inputs=inputs)
    report = lf.minimize(model, inputs)
    assert report.parameters_after < report.parameters_before / 4
    assert (report.max_relative_error or 0) <= 1e-12


def test_bad_arguments() -> None:
    for sparsity in (-0.1, 1.0, 90, float("nan")):
        with pytest.raises(ValueError, match=r"expected a share in \[0, 1\)"):
            lf.sparsify(build("mlp"), sparsity)
    with pytest.raises(ValueError, match="criterion='size'"):
        lf.sparsify(build("mlp"), 0.5, criterion="size")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="found none"):
        lf.sparsify(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), 0.5)
