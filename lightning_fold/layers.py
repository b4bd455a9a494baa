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
