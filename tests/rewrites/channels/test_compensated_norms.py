"""Norms over channels of which constant ones leave."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.layers import CompensatedLayerNorm, CompensatedRMSNorm
from tests.zoo import ChannelNorm, WrittenRMSNorm, error_of, randomise, run

WIDTH = 16


class Residual(nn.Module):
    """Two gated MLPs with a norm before each in a residual stream; ``down[0]`` writes into it first."""

    def __init__(self, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.embed, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.norms = nn.ModuleList(norm(WIDTH) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(10, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms[:2], self.up, self.down, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(self.norms[2](x))


class WrittenNorm(nn.Module):
    """A norm over dimension ``dim`` written by hand, in one of the ways in use."""

    def __init__(self, width: int, how: str, dim: int = -1):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.randn(width))
        self.how, self.dim = how, dim
        if how == "gemma":
            del self.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "gemma":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight.to(x))
        mean = x.mean(self.dim, keepdim=True)
        if self.how == "pow":
            variance = (x - mean).pow(2).mean(self.dim, keepdim=True)
        else:
            variance = x.var(self.dim, keepdim=True, unbiased=self.how == "unbiased")
        weight, bias = (p if self.dim == -1 else p[:, None, None] for p in (self.weight, self.bias))
        if self.how == "pow":
            return weight * ((x - mean) / torch.sqrt(variance + 1e-6)) + bias
        return torch.rsqrt(variance + 1e-6) * (x - mean) * weight + bias


def _network(norm: Callable[[int], nn.Module], constant: range | list[int]) -> Residual:
    torch.manual_seed(0)
    model = Residual(norm).double()
    randomise(model)
    _silence(model, constant)
    return model.eval()


def _silence(model: Residual, constant: range | list[int]) -> None:
    """Channels of the stream become constants that nobody reads behind a norm."""
    with torch.no_grad():
        for writer in (model.embed, *model.down):
            writer.weight[list(constant)] = 0
        for reader in (*model.up, model.head):
            reader.weight[:, list(constant)] = 0


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (nn.LayerNorm, CompensatedLayerNorm),
        (nn.RMSNorm, CompensatedRMSNorm),
        (WrittenRMSNorm, CompensatedRMSNorm),
        (partial(WrittenNorm, how="pow"), CompensatedLayerNorm),
        (partial(WrittenNorm, how="var"), CompensatedLayerNorm),
        (partial(WrittenNorm, how="gemma"), CompensatedRMSNorm),
    ],
)
def test_stream_with_half_its_channels_constant_shrinks_by_half(
    norm: Callable[[int], nn.Module], kind: type[nn.Module]
) -> None:
    model, x = _network(norm, range(0, WIDTH, 2)), torch.randn(5, 6, dtype=torch.float64)
    dense = deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())
    report = lf.minimize(model, x, optimizers=[optimizer])
    assert model.embed.out_features == WIDTH // 2 and all(type(n) is kind for n in model.norms)
    assert [layer.in_features for layer in model.up] == [WIDTH // 2] * 2 and report.factor > 1.7
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    for seed in range(3):
        x = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert lf.minimize(model, x).changes == ()
    _silence(model, [1, 2])  # a compensated norm shrinks further
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert model.embed.out_features == WIDTH // 2 - 2 and model.norms[0].removed == WIDTH // 2 + 2
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert lf.minimize(model, x).changes == ()
    fresh = _network(norm, [])
    lf.rebuild(fresh, json.loads(json.dumps(lf.describe(model))))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh, (x,)), run(model, (x,))) and lf.describe(fresh) == lf.describe(model)
    fresh.train()(x).square().mean().backward()


def test_channel_that_is_read_behind_the_norm_stays() -> None:
    """Normalised, a constant depends on the input: it is divided by the spread of the others."""
    model, x = _network(nn.LayerNorm, range(4)), torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        model.head.weight[:, 2] = 1.0
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert model.embed.out_features == WIDTH - 3
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("norm", [nn.RMSNorm, WrittenRMSNorm])
def test_zero_behind_an_rms_norm_is_zero(norm: type[nn.Module]) -> None:
    """Whatever reads it; and again, once the norm is a compensated one."""
    model, x = _network(norm, []), torch.randn(5, 6, dtype=torch.float64)
    for left in (WIDTH - 4, WIDTH - 8):
        with torch.no_grad():
            for writer in (model.embed, *model.down):
                writer.weight[:4], writer.bias[:4] = 0, 0
        dense = deepcopy(model)
        lf.minimize(model, x)
        assert model.embed.out_features == left == model.head.in_features
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert lf.minimize(model, x).changes == ()


def test_varying_channel_that_nobody_reads_stays() -> None:
    model, x = _network(nn.LayerNorm, []), torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        for reader in (*model.up, model.head):
            reader.weight[:, :3] = 0
    dense = deepcopy(model)
    assert lf.minimize(model, x).changes == ()
    assert error_of(run(model, (x,)), run(dense, (x,))) == 0


def test_gamma_of_zero_makes_a_constant() -> None:
    model, x = _network(nn.LayerNorm, range(4)), torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        model.head.weight[:, :4] = 1.0
        model.norms[2].weight[:4] = 0
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert model.embed.out_features == WIDTH - 4
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("norm", [ChannelNorm, partial(WrittenNorm, how="pow", dim=1)])
def test_norm_over_the_channels_of_images(norm: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 10, 1), norm(10), nn.Conv2d(10, 4, 3)).double()
    randomise(model)
    with torch.no_grad():
        model[0].weight[:6] = 0
        model[2].weight[:, :6] = 0
    dense, x = deepcopy(model), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    lf.minimize(model, x)
    assert isinstance(model[1], CompensatedLayerNorm) and model[1].dim == 1 and model[0].out_channels == 4
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert lf.minimize(model, x).changes == ()


def test_norm_of_another_kind_keeps_its_channels() -> None:
    """Divided by the number of channels less one, it is no LayerNorm."""
    model, x = _network(partial(WrittenNorm, how="unbiased"), range(4)), torch.randn(5, 6, dtype=torch.float64)
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert model.embed.out_features == WIDTH and error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("norm", [nn.LayerNorm, WrittenRMSNorm])
def test_norm_called_twice_keeps_its_width(norm: type[nn.Module]) -> None:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = nn.Linear(6, 8), norm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(F.relu(self.norm(self.embed(x)))))

    torch.manual_seed(0)
    model = Twice().double()
    with torch.no_grad():
        model.embed.weight[:4] = 0
        model.head.weight[:, :4] = 0
    dense, x = deepcopy(model), torch.randn(5, 6, dtype=torch.float64)
    lf.minimize(model, x)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


def test_group_norm_loses_whole_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 4, 3)).double()
    randomise(model)
    with torch.no_grad():
        model[0].weight[:7] = 0
        model[3].weight[:, :7] = 0
    dense, x = deepcopy(model), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    lf.minimize(model, x)
    assert (model[0].out_channels, model[1].num_groups, model[1].num_channels) == (6, 2, 6)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


def test_compensated_norms_against_the_full_ones() -> None:
    """By definition: the norm over all channels, read at those that are left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    constants = torch.randn(5, generator=generator, dtype=torch.float64)
    full = torch.cat([x, constants.expand(4, -1)], 1)
    for kind, norm in ((CompensatedLayerNorm, nn.LayerNorm), (CompensatedRMSNorm, nn.RMSNorm)):
        small = kind(9, eps=1e-5).double()
        small.absorb(constants[:2])
        small.absorb(constants[2:])
        expected = norm(14, eps=1e-5).double()(full)[:, :9]
        torch.testing.assert_close(small(x), expected, rtol=1e-13, atol=1e-14)
