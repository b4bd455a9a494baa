"""Residual networks for small images (He et al. 2015, section 4.2)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fold.errors import ArgumentError


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (option A): subsamples rows and columns and adds zero channels on both sides.

    Args:
        before: Zero channels before the input's channels, at least 0.
        after: Zero channels after them, at least 0.
        stride: Step along height and width, at least 1.

    Shape:
        ``(batch, C, H, W)`` -> ``(batch, before + C + after, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Sizes, for ``print(network)``."""
        return f"before={self.before}, after={self.after}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and a shortcut around them.

    Args:
        in_channels: Channels of the input, at least 1.
        out_channels: Channels of the output, at least 1.
        stride: Step of the first convolution and of the shortcut, at least 1.
        option: Shortcut if the shape changes: "A" pads with zeros, "B" is a 1 x 1 convolution and BatchNorm.

    Shape:
        ``(batch, in_channels, H, W)`` -> ``(batch, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, option: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Two 3 x 3 convolutions, each preceded by BatchNorm and ReLU, and a shortcut around them (He et al. 2016).

    If the shape changes, the shortcut starts after the first ReLU; option "B" is a 1 x 1 convolution without
    BatchNorm. Arguments and shapes are those of :class:`BasicBlock`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, option: Literal["A", "B"]) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride, option, norm=False)
        self.reshapes = stride > 1 or in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        y = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + self.shortcut(y if self.reshapes else x)


class CifarResNet(nn.Module):
    """Residual network for small images: a 3 x 3 convolution, stages of basic blocks, global mean, linear layer.

    Parameter names match widely shared CIFAR-10 checkpoints (``conv1``, ``bn1``,
    ``layer{1,2,3}.N.{conv1,bn1,conv2,bn2}``, ``linear``), which load strictly once the prefix ``module.`` is removed.
    ResNet-18 for small images has depth 18, widths (64, 128, 256, 512) and shortcut "B": 11.2 million parameters. With
    ``preactivation`` it is PreActResNet-18 (He et al. 2016, arXiv 1603.05027), whose only norm outside the blocks,
    ``bn1``, follows the last block.

    Args:
        depth: Number of layers with weights: 2 s n + 2 for s stages of n blocks; for three stages 8, 14, 20, 32, ...
        num_classes: Values per example in the output, at least 1.
        in_channels: Channels of the images, at least 1.
        widths: Channels of each stage, at least 1; with shortcut "A" they must not decrease.
        shortcut: Shortcut if the shape changes: "A" subsamples and pads with zero channels (no parameters), "B" is a
            1 x 1 convolution with BatchNorm.
        preactivation: Whether BatchNorm and ReLU come before the convolutions instead of after them.
        stem_stride: Step of the first convolution, at least 1; a step of 2 halves the height and width in all stages
            and takes about a quarter of the time.

    Raises:
        ArgumentError: depth, widths, shortcut or stem_stride is invalid (see above).

    Shape:
        ``(batch, in_channels, H, W)`` -> ``(batch, num_classes)``, any H and W of at least 1.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Literal["A", "B"] = "A",
        preactivation: bool = False,
        stem_stride: int = 1,
    ) -> None:
        _check(depth, widths, shortcut, stem_stride)
        super().__init__()
        self.preactivation = preactivation
        block = PreActivationBlock if preactivation else BasicBlock
        blocks = (depth - 2) // (2 * len(widths))
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[-1] if preactivation else widths[0])
        for stage, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False), start=1):
            first = block(before, width, 1 if stage == 1 else 2, shortcut)
            others = (block(width, width, 1, shortcut) for _ in range(blocks - 1))
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
        self.stages = len(widths)
        self.linear = nn.Linear(widths[-1], num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.conv1(x)
        if not self.preactivation:
            x = F.relu(self.bn1(x))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        if self.preactivation:
            x = F.relu(self.bn1(x))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _shortcut(
    in_channels: int, out_channels: int, stride: int, option: Literal["A", "B"], *, norm: bool = True
) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    if option == "A":
        before = (out_channels - in_channels) // 2
        return PaddedShortcut(before, out_channels - in_channels - before, stride)
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels)) if norm else nn.Sequential(convolution)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)


def _check(depth: int, widths: Sequence[int], shortcut: str, stem_stride: int) -> None:
    call = f"CifarResNet(depth={depth!r}, widths={tuple(widths)!r}, shortcut={shortcut!r}, stem_stride={stem_stride!r})"
    if not widths or min(widths) < 1:
        raise ArgumentError(f"{call}: widths must be one integer of at least 1 for each stage")
    step = 2 * len(widths)
    if depth < step + 2 or (depth - 2) % step:
        raise ArgumentError(f"{call}: depth must be {step} n + 2 with n >= 1, such as {step + 2} or {2 * step + 2}")
    if shortcut not in ("A", "B"):
        raise ArgumentError(f"{call}: shortcut must be 'A' or 'B'")
    if stem_stride < 1:
        raise ArgumentError(f"{call}: stem_stride must be at least 1")
    if shortcut == "A" and list(widths) != sorted(widths):
        raise ArgumentError(
            f"{call}: shortcut 'A' can only add channels; give widths that do not decrease, or shortcut 'B'"
        )
