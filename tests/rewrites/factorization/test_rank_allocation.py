"""Ranks: against all combinations of them."""

from itertools import product

import pytest
import torch
from torch import nn

from lightning_fold.errors import ArgumentError
from lightning_fold.report import Kept
from lightning_fold.rewrites.factorization.matrix_views import matrix_views
from lightning_fold.rewrites.factorization.rank_allocation import DecomposedLayer, ranks_of
from lightning_fold.rewrites.size import Size


def _layer(path: str, size: int, cost: int, energies: list[float]) -> DecomposedLayer:
    view = matrix_views(path, nn.Linear(len(energies), len(energies)))[0]
    shares = torch.tensor(energies, dtype=torch.float64)
    return DecomposedLayer(view, size, cost, torch.eye(len(energies), dtype=torch.float64), shares / shares.sum())


def _random(seed: int, costs: tuple[int, ...]) -> list[DecomposedLayer]:
    torch.manual_seed(seed)
    return [
        _layer(f"layer{i}", 6 * cost + 3, cost, torch.rand(6).sort(descending=True).values.tolist())
        for i, cost in enumerate(costs)
    ]


def _spent(layers: list[DecomposedLayer], ranks: tuple[int, ...] | list[int]) -> int:
    return sum(rank * layer.cost if rank else layer.size for layer, rank in zip(layers, ranks, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_ranks_of_one_price_hold_the_most_energy_that_fits(seed: int) -> None:
    layers, rest = _random(seed, (10, 10, 10)), 7
    whole = rest + _spent(layers, [0, 0, 0])

    def energy(ranks) -> float:
        return float(sum(layer.energies[:rank].sum() for layer, rank in zip(layers, ranks, strict=True)))

    for keep in (0.3, 0.5, 0.8):
        found = ranks_of(layers, whole, whole, Size(keep), [])
        fitting = [r for r in product(range(1, 7), repeat=3) if rest + _spent(layers, r) <= int(keep * whole)]
        assert tuple(found) in fitting
        assert energy(found) == pytest.approx(max(map(energy, fitting)))


@pytest.mark.parametrize("seed", range(4))
def test_no_rank_more_fits_the_budget(seed: int) -> None:
    layers = _random(seed, (5, 11, 23))
    whole = _spent(layers, [0, 0, 0])
    for keep in (0.25, 0.5, 0.75):
        found = ranks_of(layers, whole, whole, Size(keep), [])
        assert _spent(layers, found) <= keep * whole
        for i, rank in enumerate(found):
            more = [r + (j == i) for j, r in enumerate(found)]
            assert rank in (0, 6) or _spent(layers, more) > keep * whole


def test_whole_budget_leaves_every_layer_as_it_is() -> None:
    layers = [_layer("a", 18, 6, [3, 2, 1]), _layer("b", 18, 6, [1, 1, 1])]  # three ranks cost what the layer does
    assert ranks_of(layers, 36, 36, Size(1.0), []) == [0, 0]


@pytest.mark.parametrize(("keep", "expected"), [(0.5, 2), (0.1, 1), (0.74, 3), (1.0, 0)])
def test_share_of_the_channels_is_a_share_of_the_full_rank(keep: float, expected: int) -> None:
    layers = [_layer("a", 16, 4, [4, 3, 2, 1])]
    assert ranks_of(layers, 16, 16, Size(keep, "channels"), []) == [expected]


def test_a_layer_named_in_the_budget_keeps_at_least_its_share() -> None:
    layers = [_layer("a", 100, 10, [1.0] + [0.0] * 7), _layer("b", 100, 10, [1.0] * 8)]
    for share in (0.25, 0.55):
        found = ranks_of(layers, 200, 200, Size({"a": share, "*": 0.8}), [])
        assert found[0] * 10 >= 100 * share and _spent(layers, found) <= 160


def test_budget_below_rank_one_names_the_smallest_share_and_the_layers_left_alone() -> None:
    layers = [_layer("a", 100, 10, [1.0] * 8)]
    with pytest.raises(ArgumentError, match=r"(?s)0\.550.*c\.weight"):
        ranks_of(layers, 200, 200, Size(0.5), [Kept("c.weight", 3, "is shared", 100)])
    assert ranks_of(layers, 200, 200, Size(0.55), []) == [1]
