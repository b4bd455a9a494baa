"""minimize on single operators: what each lets go, and that the rest stays as it is."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_fold as lf
from tests.zoo import Head, error_of, randomise, run

WIDTH = 12


class Between(nn.Module):
    """A layer of 12 channels, four of them zero and two unread, before one operator and a layer behind."""

    def __init__(self, operator: Callable[[Tensor], Tensor], out: int = WIDTH):
        super().__init__()
        self.one, self.operator = nn.Conv2d(3, WIDTH, 3, padding=1), operator
        self.two, self.head = nn.Conv2d(out, 5, 1), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.two(self.operator(F.relu(self.one(x))))))


class Mix(nn.Module):
    """Tokens or channels are mixed by a parameter, written in one of several ways."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.randn(10, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        if self.how == "first":
            tokens = self.weight @ tokens
        elif self.how == "einsum":
            tokens = torch.einsum("oi,bin->bon", self.weight, tokens)
        elif self.how == "einsum_image":
            return torch.einsum("bihw,oi->bohw", x, self.weight)
        return tokens.unflatten(2, x.shape[2:])


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.product = nn.Bilinear(WIDTH, WIDTH, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        return self.product(x, x).movedim(-1, 1)


def _patches(x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)


CASES = {
    "bicubic": (lambda: Between(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)), 6),
    "nearest": (lambda: Between(lambda x: F.interpolate(x, scale_factor=2)), 6),
    "unfold": (lambda: Between(lambda x: F.unfold(x, 3).unflatten(2, (6, 6)), WIDTH * 9), 6),
    "fold": (lambda: Between(_patches), 6),
    "pixel_unshuffle": (lambda: Between(lambda x: F.pixel_unshuffle(x, 2), WIDTH * 4), 6),
    "pixel_shuffle": (lambda: Between(lambda x: F.pixel_shuffle(x, 2), WIDTH // 4), 4),
    "channel_shuffle": (lambda: Between(lambda x: F.channel_shuffle(x, 2)), 8),
    "stack": (lambda: Between(lambda x: torch.stack([x, x.flip(2)], 1).sum(1)), 6),
    "stack_channels": (lambda: Between(lambda x: torch.stack([x, 2 * x], 2).flatten(1, 2), 2 * WIDTH), 6),
    "first": (lambda: Between(Mix("first"), 10), 6),
    "einsum": (lambda: Between(Mix("einsum"), 10), 6),
    "einsum_image": (lambda: Between(Mix("einsum_image"), 10), 6),
    "bilinear": (lambda: Between(Bilinear(), 9), 6),
    "norm": (lambda: Between(lambda x: x / (x.norm(p=2, dim=(2, 3), keepdim=True) + 1)), 6),
    "new_zeros": (lambda: Between(lambda x: x + x.new_zeros(1)), 6),
    "expand_as": (lambda: Between(lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x)), 6),
}


@pytest.mark.parametrize("name", CASES)
def test_constant_and_unread_channels_leave(name: str) -> None:
    torch.manual_seed(0)
    build, left = CASES[name]
    model = build().double()
    randomise(model)
    with torch.no_grad():
        model.one.weight[:4] = 0
        model.one.bias[:4] = -1.0  # zero behind the ReLU
        per_channel = model.two.in_channels / WIDTH
        if name in ("first", "einsum", "einsum_image"):
            model.operator.weight[:, 10:] = 0
        elif name == "bilinear":
            model.operator.product.weight[:, 10:], model.operator.product.weight[:, :, 10:] = 0, 0
        elif name == "channel_shuffle":
            model.one.weight[6], model.one.bias[6] = 0, -1.0  # stands in line with channel 0
            model.two.weight[:, 3] = 0  # channel 7, which stands in line with channel 1
        elif name == "pixel_shuffle":
            model.two.weight[:, 2] = 0
        else:
            model.two.weight[:, round(10 * per_channel) :] = 0
    dense, x = deepcopy(model.eval()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    lf.minimize(model, x)
    for seed in range(2):
        x = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert lf.minimize(model, x).changes == ()
    assert model.one.out_channels == left


def test_rows_of_a_bilinear_layer_leave() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 1), Bilinear(), nn.Conv2d(9, 4, 1), Head(4)).double()
    with torch.no_grad():
        model[1].product.weight[:4] = 0
        model[2].weight[:, 6:] = 0
    dense, x = deepcopy(model), torch.randn(3, 3, 5, 5, dtype=torch.float64)
    lf.minimize(model, x)
    assert model[1].product.out_features == 2 == model[2].in_channels
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


class Standardised(nn.Conv2d):
    """A convolution whose weight is normalised for each of its filters (weight standardisation)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_a_standardised_convolution_leave(groups: int) -> None:
    """Not what it reads: each filter is divided by its own spread over all inputs, zeros included."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU(), Standardised(WIDTH, 10, 3, padding=1, groups=groups)),
        *(nn.ReLU(), nn.Conv2d(10, 4, 1), Head(4)),
    ).double()
    randomise(model)
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[2].weight[:3] = 0
        model[4].weight[:, 8:] = 0
    dense, x = deepcopy(model), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    report = lf.minimize(model, x)
    assert (model[0].out_channels, model[2].out_channels) == (WIDTH, 5 if groups == 1 else 10)
    assert any("weight" in kept.reason and "computed" in kept.reason for kept in report.kept)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("groups", [3, WIDTH])
def test_what_a_transposed_convolution_with_groups_reads_stays(groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, WIDTH, 1), nn.ConvTranspose2d(WIDTH, WIDTH, 3, groups=groups), nn.Conv2d(WIDTH, 9, 1), nn.ReLU(),
        nn.Conv2d(9, 4, 1),
    ).double()  # fmt: skip
    with torch.no_grad():
        model[0].weight[:4], model[0].bias[:4] = 0, 0
        model[4].weight[:, :2] = 0
    dense, x = deepcopy(model), torch.randn(3, 3, 5, 5, dtype=torch.float64)
    report = lf.minimize(model, x)
    assert (model[0].out_channels, model[1].out_channels, model[2].out_channels) == (WIDTH, WIDTH, 7)
    reasons = {kept.reason for kept in report.kept if kept.tensor == "0.weight"}
    assert reasons == {"1 (conv_transpose2d) is transposed and has groups, which has no rule"}
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
