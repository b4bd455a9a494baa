"""Layers that a rewrite may put into a network."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class SelectFeatures(nn.Module):
    """Passes on the listed features of the last dimension.

    Args:
        index: positions of the features to keep, or their number (the first ones, until a state dict is loaded).

    Shape:
        ``(..., features)`` -> ``(..., len(index))``.
    """

    index: Tensor

    def __init__(self, index: Tensor | int) -> None:
        super().__init__()
        positions = torch.arange(index) if isinstance(index, int) else index.detach().clone().long()
        self.register_buffer("index", positions)

    def forward(self, features: Tensor) -> Tensor:
        """Select the features."""
        return features.index_select(-1, self.index)

    def extra_repr(self) -> str:
        """Number of features, for ``print(network)``."""
        return f"{len(self.index)} features"


class Constant(nn.Module):
    """Returns the same values for every input: the remainder of a branch that no longer reads its input.

    Args:
        value: (channels,) the value of each channel, or their number (zeros, until a state dict is loaded).
        dim: the channel dimension.

    Shape:
        ``(..., any number of channels, ...)`` -> ``(..., channels, ...)``.
    """

    def __init__(self, value: Tensor | int, *, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.value = nn.Parameter(torch.zeros(value) if isinstance(value, int) else value.detach().clone())

    def forward(self, like: Tensor, *others: object, **options: object) -> Tensor:
        """The constant at every position of ``like``; other arguments, passed to the replaced module, are ignored."""
        shape, view = list(like.shape), [1] * like.dim()
        shape[self.dim], view[self.dim] = 1, -1
        return like.new_zeros(shape) + self.value.view(view)

    def extra_repr(self) -> str:
        """Number of channels, for ``print(network)``."""
        return f"{len(self.value)}, dim={self.dim}"


class CompensatedNorm(nn.Module):
    """A normalisation whose statistics still include channels that were removed.

    Removed constant channels enter with their values (minimize); merged channels enter with their number (fold).

    Args:
        width: number of remaining channels.
        removed: number of removed constant channels.
        eps: added to the variance.
        dim: the channel dimension.
        bias: whether there is a bias.
        precision: dtype of the statistics, such as ``"float32"``; the normalised values are cast back to the dtype of
            the input before they are scaled. ``None``: the dtype of the input, but at least single precision, as in
            torch's norms.

    Attributes:
        constant: mean of the removed constants.
        spread: sum of their squared distances from it.
        counts: (width,) how many channels each remaining one represents, including itself.

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
        """Add ``constants`` (channels,) to the removed ones."""
        more, total = len(constants), self.removed + len(constants)
        distance = constants.mean() - self.constant
        spread = (constants - constants.mean()).square().sum() + distance.square() * self.removed * more / total
        self.constant = self.constant + distance * more / total
        self.spread, self.removed = self.spread + spread, total

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Counts and sums of squares overflow 16-bit types, so casts to these keep them in single precision."""
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
        """The mean over all channels: ``value`` at the remaining ones, ``gone`` the sum over the removed ones."""
        counts = self.counts.to(value.dtype)
        total = (value * self._along(counts, value)).sum(self.dim, keepdim=True) + gone
        return total / (counts.sum() + self.removed)

    def _affine(self, normalised: Tensor, value: Tensor) -> Tensor:
        """Scale and shift: in one precision as in torch's norms, or in the dtype of ``value`` as in custom norms."""
        given = normalised if self.precision is None else normalised.to(value.dtype)
        scaled = given * self._along(self.weight, value)
        shifted = scaled if self.bias is None else scaled + self._along(self.bias, value)
        return shifted.to(torch.promote_types(value.dtype, self.weight.dtype))

    def _along(self, channels: Tensor, value: Tensor) -> Tensor:
        view = [1] * value.dim()
        view[self.dim] = -1
        return channels.view(view)

    def extra_repr(self) -> str:
        """Remaining and removed channels, for ``print(network)``."""
        return f"{len(self.weight)}, removed={self.removed}, eps={self.eps}, dim={self.dim}"


class CompensatedLayerNorm(CompensatedNorm):
    """LayerNorm whose mean and variance still include removed channels.

    With kept channels x that represent n channels each, R removed ones of mean m, the sum Q of their squared distances
    from m, and D = sum n + R: ``mu = (sum n x + R m) / D``, ``var = (sum n (x - mu)^2 + Q + R (m - mu)^2) / D``.
    """

    def forward(self, value: Tensor) -> Tensor:
        """Normalise."""
        computed = self._cast(value)
        mean = self._mean(computed, self.removed * self.constant)
        centred = computed - mean
        variance = self._mean(centred.square(), self.spread + self.removed * (self.constant - mean).square())
        return self._affine(centred * torch.rsqrt(variance + self.eps), value)


class CompensatedRMSNorm(CompensatedNorm):
    """RMSNorm whose mean square still includes the squares of removed channels."""

    def forward(self, value: Tensor) -> Tensor:
        """Normalise."""
        computed = self._cast(value)
        square = self._mean(computed.square(), self.spread + self.removed * self.constant.square())
        return self._affine(computed * torch.rsqrt(square + self.eps), value)


def _at_least_single(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
