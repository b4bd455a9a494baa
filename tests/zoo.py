"""Tiny networks of every shape the rewrites meet, and ways to make them sparse."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lightning_fold.models import CifarResNet


class Residual(nn.Module):
    """conv-BN-relu-conv-BN around a shortcut, which is a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class DenseBlock(nn.Module):
    """Each layer reads the concatenation of all before it."""

    def __init__(self, inputs: int = 6, growth: int = 5, layers: int = 3):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(inputs + i * growth) for i in range(layers))
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs + i * growth, growth, 3, padding=1, bias=False) for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return x


class Separable(nn.Module):
    """Inverted residual: point-wise, depthwise, point-wise."""

    def __init__(self, width: int = 6, inner: int = 12, multiplier: int = 1):
        super().__init__()
        wide = inner * multiplier
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, wide, 3, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SqueezeExcitation(nn.Module):
    """A gate for each channel, from the mean of all."""

    def __init__(self, width: int = 10, inner: int = 5):
        super().__init__()
        self.reduce = nn.Conv2d(width, inner, 1)
        self.expand = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Shuffle(nn.Module):
    """Channels of the groups of a grouped convolution take turns (ShuffleNet)."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return x.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2).reshape(x.shape)


class Gated(nn.Module):
    """Half of the channels gate the other half."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, dim=1)
        return value * torch.sigmoid(gate)


class SharedLinear(nn.Module):
    """One linear layer applied twice, and two layers with one weight and a bias each."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(9, 12)
        self.shared = nn.Linear(12, 12)
        self.left, self.right = nn.Linear(12, 10), nn.Linear(12, 10)
        self.right.weight = self.left.weight
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        return self.last(torch.tanh(self.left(x)) + F.relu(self.right(x)))


class SharedConv(nn.Module):
    """One padded convolution applied twice with a BatchNorm of its own each time."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for norm in self.norms:
            x = F.relu(norm(self.shared(x)))
        return self.head(x.mean((2, 3)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.vector = nn.Sequential(nn.Linear(5, 10), nn.ReLU())
        self.head = nn.Linear(10, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.head(self.image(image).mean((2, 3)) * self.vector(vector))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(9, 14), nn.ReLU(), nn.Linear(14, 12), nn.ReLU())
        self.one, self.two = nn.Linear(12, 3), nn.Sequential(nn.Linear(12, 7), nn.GELU(), nn.Linear(7, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"one": self.one(x), "two": self.two(x)}


class Pools(nn.Module):
    """Every kind of pooling, with and without zeros padded into the mean."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, 8, 3, padding=1) for width in (3, 8, 8, 8))
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.convs[0](x)), 3, 1, padding=1)
        x = F.avg_pool2d(F.relu(self.convs[1](x)), 3, 1, padding=1, count_include_pad=True)
        x = F.avg_pool2d(F.relu(self.convs[2](x)), 3, 1, padding=1, count_include_pad=False)
        x = F.adaptive_max_pool2d(F.relu(self.convs[3](x)), 4)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Unruled(nn.Module):
    """cumsum over the channels has no rule, LayerNorm and attention neither (yet): their channels stay."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(9, 12)
        self.free = nn.Linear(12, 11)
        self.second = nn.Linear(11, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.free(F.relu(self.first(x))).relu()
        return self.last(torch.cumsum(self.second(x), dim=1))


class Flatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.conv2 = nn.Conv2d(8, 6, 3, stride=2)
        self.fc1 = nn.Linear(6 * 4, 16)
        self.fc2 = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Head(nn.Module):
    """Mean over the positions, then a linear layer."""

    def __init__(self, inputs: int, outputs: int = 4):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


def mlp(bias: bool = True) -> nn.Module:
    widths = (9, 16, 14, 12)
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 4, bias=bias))


def convolutions(bias: bool = False, norm: bool = True, padding: int = 1, padding_mode: str = "zeros") -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in ((3, 8), (8, 10), (10, 8)):
        layers.append(nn.Conv2d(i, o, 3, padding=padding, bias=bias, padding_mode=padding_mode))
        layers += [nn.BatchNorm2d(o)] if norm else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, Head(8))


def residual() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return nn.Sequential(stem, Residual(8, 8), Residual(8, 12, 2), Head(12))


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), DenseBlock(), nn.BatchNorm2d(21), nn.ReLU(), Head(21)
    )


def separable(multiplier: int = 1) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
    return nn.Sequential(stem, Separable(multiplier=multiplier), Separable(multiplier=multiplier), Head(6))


def grouped(shuffle: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=3),
        nn.BatchNorm2d(12),
        Shuffle(3) if shuffle else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(12, 16, 1, groups=2),
        nn.ReLU(),
        Head(16),
    )


def excited() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        SqueezeExcitation(),
        nn.Conv2d(10, 8, 3, padding=1),
        nn.ReLU(),
        Head(8),
    )


def gated() -> nn.Module:
    return nn.Sequential(Gated(3, 8), Gated(8, 7), nn.Conv2d(7, 6, 3), nn.ReLU(), Head(6))


@dataclass(frozen=True)
class Entry:
    """A network of the zoo: how it is built, the shapes of its inputs, and whether it takes images of other sizes."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 8, 8),)
    any_size: bool = True

    def inputs(self, batch: int = 5, *, grow: int = 0, seed: int = 1) -> tuple[Tensor, ...]:
        """Random inputs in float64; images are ``grow`` pixels larger."""
        generator = torch.Generator().manual_seed(seed)
        larger = [(s[0], *(size + grow for size in s[1:])) for s in self.shapes]
        return tuple(torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in larger)


ZOO: dict[str, Entry] = {
    "mlp": Entry(mlp, ((9,),), any_size=False),
    "mlp_no_bias": Entry(lambda: mlp(bias=False), ((9,),), any_size=False),
    "conv_norm": Entry(convolutions),
    "conv_bias_padding": Entry(lambda: convolutions(bias=True, norm=False)),
    "conv_no_bias": Entry(lambda: convolutions(norm=False, padding=0)),
    "conv_reflect": Entry(lambda: convolutions(bias=True, norm=False, padding_mode="reflect")),
    "residual": Entry(residual),
    "dense": Entry(dense),
    "separable": Entry(separable),
    "multiplier": Entry(lambda: separable(multiplier=2)),
    "grouped": Entry(grouped),
    "shuffle": Entry(lambda: grouped(shuffle=True)),
    "shared_linear": Entry(SharedLinear, ((9,),), any_size=False),
    "shared_conv": Entry(SharedConv),
    "flatten": Entry(Flatten, any_size=False),
    "excited": Entry(excited),
    "gated": Entry(gated),
    "two_inputs": Entry(TwoInputs, ((3, 8, 8), (5,)), any_size=False),
    "two_outputs": Entry(TwoOutputs, ((9,),), any_size=False),
    "option_a": Entry(lambda: CifarResNet(8, num_classes=4, widths=(6, 8, 11))),
    "pools": Entry(Pools),
    "unruled": Entry(Unruled, ((9,),), any_size=False),
}

PATTERNS = ("rows", "columns", "scattered", "both")


def build(name: str, pattern: str | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network ``name`` in evaluation mode, masked by ``pattern``, with outputs that depend on the input."""
    torch.manual_seed(seed)
    model = ZOO[name].build().to(torch.float64)
    randomise(model)
    if pattern is not None:
        mask(model, pattern)
    restore_statistics(model, ZOO[name].inputs(16, seed=seed + 2))
    return model.eval().to(dtype)


def randomise(model: nn.Module) -> None:
    """Random biases and BatchNorm parameters, so that no constant is zero by accident."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, (nn.Linear, _ConvNd)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)


def mask(model: nn.Module, pattern: str) -> None:
    """Set weights to zero: whole filters, whole input columns, 93 % at random, or all of these. Biases stay."""
    for weight in {id(w): w for w in weights(model)}.values():
        keep = torch.ones_like(weight)
        if pattern in ("rows", "both"):
            keep[torch.rand(len(weight)) < 0.4] = 0
        if pattern in ("columns", "both"):
            keep[:, torch.rand(weight.shape[1]) < 0.4] = 0
        if pattern in ("scattered", "both"):
            keep *= torch.rand_like(weight) < (0.07 if pattern == "scattered" else 0.5)
        if len(weight) > 4 and not keep.any():
            keep[0] = 1
        with torch.no_grad():
            weight *= keep


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers and convolutions."""
    return [m.weight for m in model.modules() if isinstance(m, (nn.Linear, _ConvNd))]


def restore_statistics(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Estimate BatchNorm statistics after masking: with those from before, outputs hardly depend on the input."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(*inputs)
    for norm in norms:
        norm.momentum = 0.1
        norm.running_var += 0.05  # pyright: ignore[reportOperatorIssue]


def flat(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    """(batch, all) the outputs side by side."""
    parts = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return torch.cat([part.flatten(1) for part in parts], 1)


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return flat(model(*inputs))


def error_of(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the spread of the outputs over inputs; over their size where they hardly depend on it."""
    spread = (expected - expected.mean(0)).abs().max()
    scale = spread if spread > 1e-2 * expected.abs().max() else expected.abs().max()
    return float((found - expected).abs().max() / scale.clamp_min(1e-300))
