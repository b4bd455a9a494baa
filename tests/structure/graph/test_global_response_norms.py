"""Global response normalisation: of the channels it divides by their mean, those that are zero leave."""

import json
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

import lightning_fold as lf
from tests.zoo import error_of, randomise, run


class WrittenResponseNorm(nn.Module):
    """As in the paper's own code; ``eps`` is held by an attribute, or a number in the code."""

    def __init__(self, width: int, *, held: bool):
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.randn(1, 1, 1, width)) for _ in range(2))
        self.held, self.small = held, 1e-3

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = norm / (norm.mean(dim=-1, keepdim=True) + (self.small if self.held else 1e-3))
        return self.gamma * (x * share) + self.beta + x


def _convnext(conv_mlp: bool) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(
        "convnextv2_atto", num_classes=10, depths=(1, 1, 1, 1), dims=(6, 8, 10, 12), conv_mlp=conv_mlp
    )
    return model.double().eval()


@pytest.mark.parametrize("conv_mlp", [False, True])
def test_zeros_leave_a_convnext(conv_mlp: bool) -> None:
    model, x = _convnext(conv_mlp), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    randomise(model)
    blocks = [stage.blocks[0].mlp for stage in model.stages]
    with torch.no_grad():
        for mlp in blocks:
            mlp.fc1.weight[:5], mlp.fc1.bias[:5] = 0, 0
            mlp.fc1.weight[5], mlp.fc1.bias[5] = 0, 0.7  # a constant that is not zero is part of the mean
    dense, widths = deepcopy(model), [len(mlp.grn.weight) for mlp in blocks]
    optimizer = torch.optim.Adam(model.parameters())
    lf.minimize(model, x, optimizers=[optimizer])
    assert [len(mlp.grn.weight) for mlp in blocks] == [width - 5 for width in widths]
    for mlp, width in zip(blocks, widths, strict=True):
        assert mlp.grn.eps == pytest.approx(1e-6 * width / (width - 5), rel=1e-15)
    for size in (64, 96):
        x = torch.randn(3, 3, size, size, dtype=torch.float64)
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert lf.minimize(model, x).changes == ()
    fresh = _convnext(conv_mlp)
    lf.rebuild(fresh, json.loads(json.dumps(lf.describe(model))))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh, (x,)), run(model, (x,)))
    model.train()(x).square().mean().backward()
    optimizer.step()


def _stream(norm: nn.Module) -> Any:
    """Channels last; of the six between, the first two are zero."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), norm, nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0, 0
    return model


def test_however_it_is_written() -> None:
    model, x = _stream(WrittenResponseNorm(6, held=True)), torch.randn(2, 5, 5, 4, dtype=torch.float64)
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert model[0].out_features == 4 and model[2].small == pytest.approx(1.5e-3, rel=1e-15)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


def test_a_number_in_the_code_keeps_them() -> None:
    model, x = _stream(WrittenResponseNorm(6, held=False)), torch.randn(2, 5, 5, 4, dtype=torch.float64)
    del model[2].small
    report = lf.minimize(model, x)
    assert report.changes == () and report.max_relative_error == 0
    assert [(kept.tensor, kept.channels) for kept in report.kept] == [("0.weight", 2)]
    assert "a mean over a number of channels that the code fixes" in report.kept[0].reason


def test_an_attribute_of_that_value_that_the_code_does_not_ask_keeps_them() -> None:
    """The rewrite that trusts it is not exact, so it is taken back and they stay."""
    model, x = _stream(WrittenResponseNorm(6, held=False)), torch.randn(2, 5, 5, 4, dtype=torch.float64)
    report = lf.minimize(model, x)
    assert report.changes == () and model[2].small == 1e-3


def test_merged_channels_are_refused_and_pruned_ones_leave() -> None:
    model, x = _stream(GlobalResponseNorm(6)), torch.randn(2, 5, 5, 4, dtype=torch.float64)
    lf.prune(model, x, keep=0.5, of="channels")
    assert model[0].out_features == 3 == len(model[2].weight) and model(x).shape == (2, 5, 5, 3)
    report = lf.fold(_stream(GlobalResponseNorm(6)), x, keep=0.5, of="channels")
    assert report.changes == () and any("cannot count merged channels" in kept.reason for kept in report.kept)
