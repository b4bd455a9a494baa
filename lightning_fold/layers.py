"""Layers that a rewrite may put into a network."""

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


class CompensatedNorm(nn.Module):
    """A normalisation over channels of which some are gone: their constants still enter the statistics.

    Args:
        width: number of channels that are left.
        removed: number of constant channels that are gone.
        eps: added to the variance.
        dim: the dimension that holds the channels.
        bias: whether there is a bias.
        precision: the type in which the statistics are computed, as ``"float32"``; ``None`` for that of the input.

    Attributes:
        constant: mean of the constants that are gone.
        spread: sum of their squared distances from it.

    Shape:
        ``(..., width, ...)`` -> the same.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    constant: Tensor
    spread: Tensor

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

    def absorb(self, constants: Tensor) -> None:
        """Count ``constants`` (channels,) among those that are gone."""
        more, total = len(constants), self.removed + len(constants)
        distance = constants.mean() - self.constant
        spread = (constants - constants.mean()).square().sum() + distance.square() * self.removed * more / total
        self.constant = self.constant + distance * more / total
        self.spread, self.removed = self.spread + spread, total

    def _cast(self, value: Tensor) -> Tensor:
        return value if self.precision is None else value.to(getattr(torch, self.precision))

    def _affine(self, normalised: Tensor) -> Tensor:
        view = [1] * normalised.dim()
        view[self.dim] = -1
        scaled = normalised * self.weight.view(view)
        return scaled if self.bias is None else scaled + self.bias.view(view)

    def extra_repr(self) -> str:
        """Channels left and gone, for ``print(network)``."""
        return f"{len(self.weight)}, removed={self.removed}, eps={self.eps}, dim={self.dim}"


class CompensatedLayerNorm(CompensatedNorm):
    """LayerNorm over channels of which some are gone: their constants still enter mean and variance.

    With kept channels x, R removed ones of mean m and squared distances Q from it, and D channels in all:
    ``mu = (sum x + R m) / D``, ``var = (sum (x - mu)^2 + Q + R (m - mu)^2) / D``.
    """

    def forward(self, value: Tensor) -> Tensor:
        """Normalise."""
        width, computed = value.shape[self.dim] + self.removed, self._cast(value)
        mean = (computed.sum(self.dim, keepdim=True) + self.removed * self.constant) / width
        centred = computed - mean
        gone = self.spread + self.removed * (self.constant - mean).square()
        variance = (centred.square().sum(self.dim, keepdim=True) + gone) / width
        return self._affine((centred * torch.rsqrt(variance + self.eps)).to(value.dtype))


class CompensatedRMSNorm(CompensatedNorm):
    """RMSNorm over channels of which some are gone: their squares still enter the mean square."""

    def forward(self, value: Tensor) -> Tensor:
        """Normalise."""
        width, computed = value.shape[self.dim] + self.removed, self._cast(value)
        gone = self.spread + self.removed * self.constant.square()
        square = (computed.square().sum(self.dim, keepdim=True) + gone) / width
        return self._affine((computed * torch.rsqrt(square + self.eps)).to(value.dtype))
