"""Allocate the ranks of factorized layers: singular values with the most energy per cost come first."""

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_fold.errors import ArgumentError
from lightning_fold.report import Kept
from lightning_fold.rewrites.factorization.matrix_views import MatrixView
from lightning_fold.rewrites.factorization.replaceability import left_alone
from lightning_fold.rewrites.size import Size, at_least

_BISECTIONS = 60


@dataclass(frozen=True)
class DecomposedLayer:
    """A layer to factorize.

    Attributes:
        shape: the view of the layer as a matrix.
        size: cost of the original layer, in parameters or FLOPs.
        cost: cost of one rank.
        basis: (rows, full rank) orthonormal directions of the outputs, in descending order of energy.
        energies: the share of the energy in each direction.
    """

    shape: MatrixView
    size: int
    cost: int
    basis: Tensor
    energies: Tensor

    def spent(self, rank: int) -> int:
        """The cost at this rank; rank 0 stands for the original layer."""
        return rank * self.cost if rank else self.size

    def at(self, rank: int) -> int:
        """``rank``, or 0 if factors of this rank would not be smaller than the layer."""
        return rank if rank * self.cost < self.size else 0

    def at_share(self, share: float | None) -> int:
        """The rank that is ``share`` of the full rank; 0 if there is no share."""
        return 0 if share is None else self.at(max(round(share * len(self.energies)), 1))

    def bounded(self, share: float | None) -> int:
        """The smallest rank that costs at least ``share`` of the layer; 1 if there is no share."""
        return self.at(1 if share is None else max(math.ceil(share * self.size / self.cost), 1))


def ranks_of(layers: list[DecomposedLayer], whole: int, before: int, size: Size, kept: list[Kept]) -> list[int]:
    """The rank of each layer, 0 if it is not changed: a share of the full rank, or the most that a budget allows.

    Args:
        layers: the layers that can be factorized.
        whole: cost of the network with all of them unchanged.
        before: cost of the network as it was passed in; shares refer to it.
        size: the requested size.
        kept: the other layers and why they are kept, for the error message.

    Raises:
        ArgumentError: the smallest ranks of all layers still exceed the budget.
    """
    if size.is_budget:
        return _allocate(layers, whole - sum(layer.size for layer in layers), before, size, kept)
    return [layer.at_share(size.share_of([layer.shape.path])) for layer in layers]


def _allocate(layers: list[DecomposedLayer], rest: int, before: int, size: Size, kept: list[Kept]) -> list[int]:
    fewest, budget = [layer.bounded(size.bound_of([layer.shape.path])) for layer in layers], int(size.whole * before)

    def total(ranks: list[int]) -> int:
        return rest + sum(layer.spent(rank) for layer, rank in zip(layers, ranks, strict=True))

    def ranks_at(threshold: float) -> list[int]:
        wanted = [int((layer.energies / layer.cost >= threshold).sum()) for layer in layers]
        bounded = zip(layers, wanted, fewest, strict=True)
        return [layer.at(max(rank, least)) if least else 0 for layer, rank, least in bounded]

    smallest = total(fewest)
    if smallest > budget:
        bounded = any(least != 1 for least in fewest)
        ranks = "the smallest ranks that it allows still leave" if bounded else "rank 1 in every layer still leaves"
        raise ArgumentError(
            f"factorize({size}): {ranks} {at_least(smallest / before)} of the {size.unit}; expected a share of the "
            "network of at least that. Raise the share, or fold or prune the network first."
            f"{left_alone({each.tensor: each.reason for each in kept})}"
        )
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low > 0 else high / 1e3
        low, high = (middle, high) if total(ranks_at(middle)) > budget else (low, middle)
    ranks = ranks_at(high)
    return _spend_rest(layers, ranks, budget - total(ranks))


def _spend_rest(layers: list[DecomposedLayer], ranks: list[int], left: int) -> list[int]:
    """Spend the rest of the budget on further ranks, or on original layers, those with the most energy first."""
    while True:
        prices = {
            index: layer.spent(layer.at(rank + 1)) - layer.spent(rank)
            for index, (layer, rank) in enumerate(zip(layers, ranks, strict=True))
            if 0 < rank < len(layer.energies)
        }
        fitting = [index for index, price in prices.items() if price <= left]
        if not fitting:
            return ranks
        best = max(fitting, key=lambda index: float(layers[index].energies[ranks[index]]) / layers[index].cost)
        left -= prices[best]
        ranks = [layers[i].at(rank + 1) if i == best else rank for i, rank in enumerate(ranks)]
