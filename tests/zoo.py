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
    """cumsum over the channels has no rule: its channels stay."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(9, 12)
        self.free = nn.Linear(12, 11)
        self.second = nn.Linear(11, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.free(F.relu(self.first(x))).relu()
        return self.last(torch.cumsum(self.second(x), dim=1))


class Stream(nn.Module):
    """A residual stream of tokens through norms: class token, positions, layer scale, MLPs (ViT without attention)."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm, width: int = 12, hidden: int = 16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.norms = nn.ModuleList(norm(width) for _ in range(3))
        self.ups = nn.ModuleList(nn.Linear(width, hidden) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(hidden, width) for _ in range(2))
        self.scales = nn.ParameterList(torch.rand(width) for _ in range(2))
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for norm, up, down, scale in zip(self.norms[:2], self.ups, self.downs, self.scales, strict=True):
            x = x + down(F.gelu(up(norm(x)))) * scale
            x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        x = self.norms[2](x)
        return self.head(torch.cat([x[:, 0], x.mean(1)], 1))


class Attention(nn.Module):
    """Self-attention, written in one of the ways in use; every one cuts channels into heads.

    ``fused`` projects queries, keys and values together and asks its own attributes for sizes, ``chunked`` cuts them
    into chunks, ``apart`` has three projections, ``by_hand`` multiplies and normalises itself, ``single`` has one head.
    """

    def __init__(self, kind: str, width: int, heads: int = 2, head_dim: int = 6):
        super().__init__()
        self.kind, self.heads, self.head_dim, self.attn_dim = kind, heads, head_dim, heads * head_dim
        self.scale = head_dim**-0.5
        if kind in ("apart", "single"):
            self.q, self.k, self.v = (nn.Linear(width, self.attn_dim) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * self.attn_dim)
        self.proj = nn.Linear(self.attn_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(getattr(self, self.kind)(x))

    def fused(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.attn_dim)

    def chunked(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)

    def apart(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)

    def by_hand(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(b, n, -1)

    def single(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).mT * self.scale, dim=-1)
        return torch.bmm(weights, self.v(x))


class Fixed(nn.Module):
    """The code names the size of a head: nothing can leave."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 36), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 12))


class Multihead(nn.Module):
    """``nn.MultiheadAttention`` as self-attention."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Transformer(nn.Module):
    """Two blocks of attention and MLP between patches and a mean over tokens."""

    def __init__(self, attention: Callable[[int], nn.Module], width: int = 8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attentions = nn.ModuleList(attention(width) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """``nn.TransformerEncoder``."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(9, 3, 14, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class ConvStream(nn.Module):
    """ConvNeXt in small: norms over the channels of images, depthwise convolutions, a strided one between stages."""

    def __init__(self, width: int = 10):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, width, 2, 2), ChannelNorm(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 14), nn.Linear(14, width)
        self.scale = nn.Parameter(torch.rand(width))
        self.between, self.reduce = ChannelNorm(width), nn.Conv2d(width, 8, 2, 2)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x))
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + (self.down(F.gelu(self.up(y))) * self.scale).permute(0, 3, 1, 2)
        return self.head(self.reduce(self.between(x)).mean((2, 3)))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over dimension 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WrittenRMSNorm(nn.Module):
    """RMSNorm written by hand, which leaves its width to its weight."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Gate(nn.Module):
    """RMSNorm and a gated MLP in a residual stream, as in LLaMA."""

    def __init__(self, width: int = 9):
        super().__init__()
        self.embed = nn.Linear(9, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.gate, self.up, self.down = nn.Linear(width, 13), nn.Linear(width, 13), nn.Linear(13, width)
        self.head = nn.Linear(width, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norms[0](x)
        return self.head(self.norms[1](x + self.down(F.silu(self.gate(y)) * self.up(y))))


class Words(nn.Module):
    """A table of embeddings, read at positions made of the input."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.up, self.head = (
            nn.Embedding(7, 12),
            nn.LayerNorm(12),
            nn.Linear(12, 9),
            nn.Linear(9, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        words = (x.abs() * 5).long() % 7
        return self.head(F.relu(self.up(self.norm(self.table(words)))).mean(1))


class Transposed(nn.Module):
    """Transposed convolutions in one, two and three dimensions."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 7, 4, 2, 1)
        self.line, self.cube = nn.ConvTranspose1d(7, 6, 3, 2), nn.ConvTranspose3d(6, 5, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.down(x))))
        x = F.relu(self.line(x.mean(3)))
        return self.head(F.relu(self.cube(x[..., None, None])).mean((2, 3, 4)))


class Products(nn.Module):
    """Matrix products with a parameter as second operand, written by hand."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(9, 12)
        self.one, self.two, self.three = (nn.Parameter(torch.randn(i, o)) for i, o in ((12, 11), (11, 10), (10, 4)))
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.relu(self.first(x)) @ self.one)
        return torch.mm(F.relu(torch.addmm(self.bias, x, self.two)), self.three)


class InPlace(nn.Module):
    """A view that is written to: the graph is read after functionalisation, where BatchNorm is another operator."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = (
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 7, 3, bias=False),
        )
        self.last_norm, self.head = nn.BatchNorm2d(7), Head(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x.view(x.shape).mul_(0.5)
        return self.head(F.relu(self.last_norm(self.last(x))))


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


def normed(norm: Callable[[int], nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in ((3, 8), (8, 12), (12, 8)):
        layers += [nn.Conv2d(i, o, 3, padding=1), norm(o), nn.ReLU()]
    return nn.Sequential(*layers, Head(8))


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
    "group_norm": Entry(lambda: normed(lambda width: nn.GroupNorm(4, width))),
    "one_group": Entry(lambda: normed(lambda width: nn.GroupNorm(1, width))),
    "instance_norm": Entry(lambda: normed(lambda width: nn.InstanceNorm2d(width, affine=True))),
    "stream": Entry(Stream, any_size=False),
    "stream_rms": Entry(lambda: Stream(nn.RMSNorm), any_size=False),
    "conv_stream": Entry(ConvStream, any_size=False),
    "gate": Entry(Gate, ((9,),), any_size=False),
    "words": Entry(Words, ((9,),), any_size=False),
    "transposed": Entry(Transposed),
    "products": Entry(Products, ((9,),), any_size=False),
    "in_place": Entry(InPlace),
    **{
        f"attention_{kind}": Entry(lambda kind=kind: Transformer(lambda width: Attention(kind, width)))
        for kind in ("fused", "chunked", "apart", "by_hand", "single")
    },
    "attention_fixed": Entry(lambda: Transformer(Fixed)),
    "multihead": Entry(lambda: Transformer(Multihead)),
    "encoder": Entry(Encoder, ((5, 9),), any_size=False),
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
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d)):
            for name, parameter in module.named_parameters():
                nn.init.uniform_(parameter, 0.5, 1.5) if name == "weight" else nn.init.normal_(parameter, std=0.5)
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
    return [m.weight for m in model.modules() if isinstance(m, (nn.Linear, _ConvNd, nn.Embedding))]


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
