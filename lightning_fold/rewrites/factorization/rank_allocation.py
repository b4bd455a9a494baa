"""The ranks of factorized layers: singular values with the most energy for their price come first."""

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
        shape: how it is read as a matrix.
        size: what it costs as it is, in parameters or FLOPs.
        cost: what one rank costs.
        basis: (rows, rows or columns) orthonormal directions of the outputs, the most energy first.
        energies: the share of the energy in each of them.
    """

    shape: MatrixView
    size: int
    cost: int
    basis: Tensor
    energies: Tensor

    def spent(self, rank: int) -> int:
        """What it costs with this rank; 0 leaves it as it is."""
        return rank * self.cost if rank else self.size

    def at(self, rank: int) -> int:
        """``rank``, or 0 where factors of this rank would not be smaller."""
        return rank if rank * self.cost < self.size else 0

    def at_share(self, share: float | None) -> int:
        """The rank that is ``share`` of the full one; 0 where there is no share."""
        return 0 if share is None else self.at(max(round(share * len(self.energies)), 1))

    def bounded(self, share: float | None) -> int:
        """The smallest rank that costs at least ``share`` of the layer, 1 where there is no share."""
        return self.at(1 if share is None else max(math.ceil(share * self.size / self.cost), 1))


def ranks_of(layers: list[DecomposedLayer], whole: int, before: int, size: Size, kept: list[Kept]) -> list[int]:
    """The rank of each layer, 0 where it stays: a share of the full one, or what a budget allows.

    Args:
        layers: those that can be factorized.
        whole: what the network costs with all of them as they are.
        before: what the share is of: what the network cost when it was passed.
        size: the size asked for.
        kept: the other layers with the reason why they stay, for the message.

    Raises:
        ValueError: the smallest ranks of all layers still cost more.
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
            "network of at least that. Or fold or prune the network first."
            f"{left_alone({each.tensor: each.reason for each in kept})}"
        )
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low > 0 else high / 1e3
        low, high = (middle, high) if total(ranks_at(middle)) > budget else (low, middle)
    ranks = ranks_at(high)
    return _spend_rest(layers, ranks, budget - total(ranks))


def _spend_rest(layers: list[DecomposedLayer], ranks: list[int], left: int) -> list[int]:
    """One more rank, or the layer as it was, wherever that still fits, the most energy first."""
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
