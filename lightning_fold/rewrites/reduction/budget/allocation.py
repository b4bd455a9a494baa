"""How many channels each width keeps: a given share, or as many as a budget for the whole network allows."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from lightning_fold.errors import ArgumentError
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.budget.cost_model import CostModel
from lightning_fold.rewrites.size import Size, at_least

SHARES = (0.875, 0.625, 0.375, 0.125)  # sizes at which the error of a width is measured
_STEPS = 16  # a width shrinks in this many steps, and at the end channel by channel

Curve = Callable[[int], float]


def share_out(widths: list[PrunableGroup], shares: Sequence[float | None], bundles: list[list[int]]) -> list[int]:
    """The number of channels that each block of each width keeps, at least one.

    Args:
        widths: the widths.
        shares: for each width, the share of its channels to keep, in [0, 1]; ``None`` keeps all.
        bundles: positions of the widths that must keep the same number of channels; the largest share counts.
    """
    kept = [w.size if share is None else max(round(share * w.size), 1) for w, share in zip(widths, shares, strict=True)]
    for bundle in bundles:
        most = max(kept[i] for i in bundle)
        kept = [most if i in bundle else size for i, size in enumerate(kept)]
    return kept


def error_curve(width: PrunableGroup, error_at: Callable[[int], float]) -> Curve:
    """The error of a width as a function of its size, interpolated from a few measurements; monotone.

    Below the smallest measured size the error grows like the inverse of the size, so that emptying a width is not free.
    """
    sizes = sorted({max(1, round(share * width.size)) for share in SHARES} - {width.size}, reverse=True)
    errors = np.maximum.accumulate([0.0, *(error_at(size) for size in sizes)])
    sizes = [width.size, *sizes]

    def curve(size: int) -> float:
        below = sizes[-1] / size if size < sizes[-1] else 1.0
        return float(np.interp(size, sizes[::-1], errors[::-1])) * below

    return curve


def allocate(method: str, costs: CostModel, curves: list[Curve], size: Size, fewest: list[int]) -> list[int]:
    """The number of channels that each block of each width keeps, so that the cost meets the budget.

    Greedy: each step removes channels from the width with the smallest increase of error per saved cost. The last step
    is cut short so that the cost comes as close to the budget as possible.

    Args:
        method: name of the rewrite, for error messages.
        costs: the cost of every size.
        curves: the error of each width as a function of its size.
        size: the budget.
        fewest: the minimum number of channels per block of each width; equal within a bundle.

    Raises:
        ArgumentError: even the smallest sizes exceed the budget.
    """
    kept = [width.size for width in costs.widths]
    least = costs.cost(fewest)
    goal, cost = size.whole * costs.total, float(costs.total)
    if least > goal:
        bounded = any(number > 1 for number in fewest)
        smallest = "the smallest sizes allowed" if bounded else "one channel in every width that can shrink"
        verb = "leave" if bounded else "leaves"
        raise ArgumentError(
            f"{method}({size}): {smallest} still {verb} {at_least(least / costs.total)} of the {size.unit}; expected "
            f"a share of the network of at least that."
        )

    def step_of(bundle: list[int]) -> int:
        first = bundle[0]
        return min(max(1, costs.widths[first].size // _STEPS), kept[first] - fewest[first])

    def price(number: int) -> tuple[float, int]:
        bundle = costs.bundles[number]
        step = step_of(bundle)
        error = sum(curves[i](kept[i] - step) - curves[i](kept[i]) for i in bundle)
        return (error + 1e-9) / max(costs.saved(bundle, kept, step), 1e-9), number

    shrinking = [number for number, (first, *_) in enumerate(costs.bundles) if kept[first] > fewest[first]]
    queue = [price(number) for number in shrinking]
    heapq.heapify(queue)
    while cost > goal and queue:
        _, number = heapq.heappop(queue)
        now, bundle = price(number), costs.bundles[number]
        if queue and now > queue[0]:  # its price rose since it was queued
            heapq.heappush(queue, now)
            continue
        step = step_of(bundle)
        if cost - costs.saved(bundle, kept, step) < goal:
            step = _last_step(costs, kept, bundle, step, cost - goal)
        cost -= costs.saved(bundle, kept, step)
        kept = [size - step * (i in bundle) for i, size in enumerate(kept)]
        if step and kept[bundle[0]] > fewest[bundle[0]]:
            heapq.heappush(queue, price(number))
    return kept


def _last_step(costs: CostModel, kept: list[int], bundle: list[int], most: int, missing: float) -> int:
    """The number of channels of a bundle whose saving is closest to the missing amount."""
    return min(range(most + 1), key=lambda step: abs(costs.saved(bundle, kept, step) - missing))
