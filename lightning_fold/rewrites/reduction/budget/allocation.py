"""Which width keeps how many channels: the same share everywhere, or under a budget for the whole network."""

import heapq
import math
from collections.abc import Callable

import numpy as np

from lightning_fold.errors import ArgumentError
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.budget.cost_model import CostModel

SHARES = (0.875, 0.625, 0.375, 0.125)  # sizes at which the error of a width is measured
_STEPS = 16  # a width shrinks in so many steps, and at the end channel by channel

Curve = Callable[[int], float]


def uniform(widths: list[PrunableGroup], ratio: float) -> list[int]:
    """The channels that each block of each width keeps at the same ratio everywhere; at least one."""
    return [max(round((1 - ratio) * width.size), 1) for width in widths]


def error_curve(width: PrunableGroup, error_at: Callable[[int], float]) -> Curve:
    """The error of a width as a function of its size, measured at a few sizes and interpolated; never falling.

    Below the smallest measured size it grows on as the inverse of the size, so that no width is emptied for nothing.
    """
    sizes = sorted({max(1, round(share * width.size)) for share in SHARES} - {width.size}, reverse=True)
    errors = np.maximum.accumulate([0.0, *(error_at(size) for size in sizes)])
    sizes = [width.size, *sizes]

    def curve(size: int) -> float:
        below = sizes[-1] / size if size < sizes[-1] else 1.0
        return float(np.interp(size, sizes[::-1], errors[::-1])) * below

    return curve


def allocate(method: str, costs: CostModel, curves: list[Curve], share: float, name: str) -> list[int]:
    """The channels that each block of each width keeps, so that the cost comes to ``share`` of the whole.

    Greedy: each step takes channels from the width that adds the least error for what it saves. The last width gives
    them one by one, to the nearest size.

    Raises:
        ValueError: one channel in every block of every width still costs more.
    """
    kept = [width.size for width in costs.widths]
    least = costs.cost([1] * len(kept))
    goal, cost = share * costs.total, float(costs.total)
    if least > goal:
        raise ArgumentError(
            f"{method}({name}={share}): one channel in every width that can shrink still leaves "
            f"{at_least(least / costs.total)} of them; expected {name} of at least that."
        )

    def step_of(bundle: list[int]) -> int:
        first = bundle[0]
        return min(max(1, costs.widths[first].size // _STEPS), kept[first] - 1)

    def price(number: int) -> tuple[float, int]:
        bundle = costs.bundles[number]
        step = step_of(bundle)
        error = sum(curves[i](kept[i] - step) - curves[i](kept[i]) for i in bundle)
        return (error + 1e-9) / max(costs.saved(bundle, kept, step), 1e-9), number

    queue = [price(number) for number in range(len(costs.bundles))]
    heapq.heapify(queue)
    while cost > goal and queue:
        _, number = heapq.heappop(queue)
        now, bundle = price(number), costs.bundles[number]
        if queue and now > queue[0]:  # it saves less than it did when it was put there
            heapq.heappush(queue, now)
            continue
        step = step_of(bundle)
        if cost - costs.saved(bundle, kept, step) < goal:
            step = _last_step(costs, kept, bundle, step, cost - goal)
        cost -= costs.saved(bundle, kept, step)
        kept = [size - step * (i in bundle) for i, size in enumerate(kept)]
        if step and kept[bundle[0]] > 1:
            heapq.heappush(queue, price(number))
    return kept


def at_least(share: float) -> str:
    """``share`` with three digits, rounded up: a budget that can be met."""
    return f"{math.ceil(1000 * share) / 1000:.3f}"


def missed(report: RewriteReport, share: float, unit: str, planned: float | None = None) -> str | None:
    """What to say of a result that is not within 2 % of the budget; ``None`` of one that is.

    Args:
        report: what was done.
        share: of the network, that was asked for.
        unit: "parameters" or "flops".
        planned: the share that the chosen sizes were to leave; ``None`` where what was planned is what was done.
    """
    before, after = report.parameters_before, report.parameters_after
    if unit == "flops":
        before, after = report.flops_before or 1, report.flops_after or 0
    left, what = after / before, "FLOPs" if unit == "flops" else unit
    if abs(left - share) <= 0.02:
        return None
    if planned is None or abs(left - planned) < 0.005:
        return f"{left:.1%} of the {what} are left, the nearest to the {share:.1%} asked for"
    why = "channels that do the same became one" if left < planned else "fewer channels could go than was planned"
    return f"{left:.1%} of the {what} are left, not the {share:.1%} asked for: {why}"


def _last_step(costs: CostModel, kept: list[int], bundle: list[int], most: int, missing: float) -> int:
    """How many channels of a bundle come nearest to what is missing."""
    return min(range(most + 1), key=lambda step: abs(costs.saved(bundle, kept, step) - missing))
