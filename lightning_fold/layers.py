"""Layers that a rewrite may put into a network."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class SelectFeatures(nn.Module):
    """Passes on the listed features of the last dimension.

    Args:
        index: positions of the features to keep, or how many there are (the first ones, until a state dict says which).

    Shape:
        ``(..., features)`` -> ``(..., len(index))``.
    """

    index: Tensor

    def __init__(self, index: Tensor | int) -> None:
        super().__init__()
        positions = torch.arange(index) if isinstance(index, int) else index.detach().clone().long()
        self.register_buffer("index", positions)

    def forward(self, features: Tensor) -> Tensor:
        """Select."""
        return features.index_select(-1, self.index)

    def extra_repr(self) -> str:
        """Number of features, for ``print(network)``."""
        return f"{len(self.index)} features"


class Constant(nn.Module):
    """Gives the same for every input: what is left of a branch that no longer reads it.

    Args:
        value: (channels,) what each channel is, or how many there are (zeros, until a state dict says more).
        dim: the dimension that holds the channels.

    Shape:
        ``(..., any number of channels, ...)`` -> ``(..., channels, ...)``.
    """

    def __init__(self, value: Tensor | int, *, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.value = nn.Parameter(torch.zeros(value) if isinstance(value, int) else value.detach().clone())

    def forward(self, like: Tensor, *others: object, **options: object) -> Tensor:
        """The constant, for every position of ``like``; what else the module in this place was given is not read."""
        shape, view = list(like.shape), [1] * like.dim()
        shape[self.dim], view[self.dim] = 1, -1
        return like.new_zeros(shape) + self.value.view(view)

    def extra_repr(self) -> str:
        """Number of channels, for ``print(network)``."""
        return f"{len(self.value)}, dim={self.dim}"


class CompensatedNorm(nn.Module):
    """A normalisation over channels of which some are gone: what they were still enters the statistics.

    Constant channels leave with their values (minimize); channels that were merged leave with their number (fold).

    Args:
        width: number of channels that are left.
        removed: number of constant channels that are gone.
        eps: added to the variance.
        dim: the dimension that holds the channels.
        bias: whether there is a bias.
        precision: the type in which the statistics are computed, as ``"float32"``, before the result is that of the
            input again and scaled; ``None`` for that of the input and at least single precision, as torch's norms do.

    Attributes:
        constant: mean of the constants that are gone.
        spread: sum of their squared distances from it.
        counts: (width,) how many channels each of those left stands for, itself included.

    Shape:
        ``(..., width, ...)`` -> the same.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    constant: Tensor
    spread: Tensor
    counts: Tensor

    def __init__(
        self,
        width: int,
        removed: int = 0,
        *,
        eps: float = 1e-5,
        dim: int = -1,
        bias: bool = True,
        precision: str | None = None,
    ) -> None:
        super().__init__()
        self.removed, self.eps, self.dim, self.precision = removed, eps, dim, precision
        self.weight = nn.Parameter(torch.ones(width))
        self.register_parameter("bias", nn.Parameter(torch.zeros(width)) if bias else None)
        self.register_buffer("constant", torch.zeros(()))
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("counts", torch.ones(width))

    def absorb(self, constants: Tensor) -> None:
        """Count ``constants`` (channels,) among those that are gone."""
        more, total = len(constants), self.removed + len(constants)
        distance = constants.mean() - self.constant
        spread = (constants - constants.mean()).square().sum() + distance.square() * self.removed * more / total
        self.constant = self.constant + distance * more / total
        self.spread, self.removed = self.spread + spread, total

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Counts and sums of squares exceed 16 bits: a cast of the network to those leaves them in single precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype != _at_least_single(buffer):
                self._buffers[name] = before[name].to(buffer.device, _at_least_single(buffer))  # pyright: ignore
        return self

    def _cast(self, value: Tensor) -> Tensor:
        wanted = _at_least_single(value) if self.precision is None else getattr(torch, self.precision)
        return value if value.dtype == wanted else value.to(wanted)

    def _mean(self, value: Tensor, gone: Tensor) -> Tensor:
        """The mean over all channels, of ``value`` over those left and ``gone`` over the sum of the others."""
        counts = self.counts.to(value.dtype)
        total = (value * self._along(counts, value)).sum(self.dim, keepdim=True) + gone
        return total / (counts.sum() + self.removed)

    def _affine(self, normalised: Tensor, value: Tensor) -> Tensor:
        """Scale and shift: all in one precision as torch's norms do, or in the type of ``value`` as written ones do."""
        given = normalised if self.precision is None else normalised.to(value.dtype)
        scaled = given * self._along(self.weight, value)
        shifted = scaled if self.bias is None else scaled + self._along(self.bias, value)
        return shifted.to(torch.promote_types(value.dtype, self.weight.dtype))

    def _along(self, channels: Tensor, value: Tensor) -> Tensor:
        view = [1] * value.dim()
        view[self.dim] = -1
        return channels.view(view)

    def extra_repr(self) -> str:
        """Channels left and gone, for ``print(network)``."""
        return f"{len(self.weight)}, removed={self.removed}, eps={self.eps}, dim={self.dim}"


class CompensatedLayerNorm(CompensatedNorm):
    """LayerNorm over channels of which some are gone: what they were still enters mean and variance.

    With kept channels x that stand for n channels each, R removed ones of mean m and squared distances Q from it, and
    D = sum n + R: ``mu = (sum n x + R m) / D``, ``var = (sum n (x - mu)^2 + Q + R (m - mu)^2) / D``.
    """

    def forward(self, value: Tensor) -> Tensor:
        """Normalise."""
        computed = self._cast(value)
        mean = self._mean(computed, self.removed * self.constant)
        centred = computed - mean
        variance = self._mean(centred.square(), self.spread + self.removed * (self.constant - mean).square())
        return self._affine(centred * torch.rsqrt(variance + self.eps), value)


class CompensatedRMSNorm(CompensatedNorm):
    """RMSNorm over channels of which some are gone: their squares still enter the mean square."""

    def forward(self, value: Tensor) -> Tensor:
        """Normalise."""
        computed = self._cast(value)
        square = self._mean(computed.square(), self.spread + self.removed * self.constant.square())
        return self._affine(computed * torch.rsqrt(square + self.eps), value)


def _at_least_single(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
