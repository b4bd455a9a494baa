"""The requested size: which share to keep, of what, and in which layers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Literal, get_args

from lightning_fold.arguments import check_choice
from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.report import RewriteReport, some_of

Of = Literal["parameters", "flops", "channels"]
Keep = float | Mapping[str, float]

REST = "*"  # the pattern for all layers that no other pattern matches


@dataclass(frozen=True)
class Size:
    """The requested size; every rewrite, callback and command takes these two arguments.

    Attributes:
        keep: the share to keep, in (0, 1], or a mapping from patterns of dotted layer names to such shares. The first
            pattern that matches counts; ``"*"``, at any position, is for the remaining layers.
        of: what ``keep`` is a share of: "parameters" or "flops" of the network (a budget), or the "channels" of each
            width.
    """

    keep: Keep = 0.5
    of: Of = "parameters"

    def __str__(self) -> str:
        """The arguments as in a call."""
        keep = dict(self.keep) if isinstance(self.keep, Mapping) else self.keep
        return f"keep={keep!r}" + ("" if self.of == "parameters" else f", of={self.of!r}")

    @property
    def unit(self) -> str:
        """The counted unit, as messages name it."""
        return "FLOPs" if self.of == "flops" else self.of

    @property
    def is_budget(self) -> bool:
        """Whether ``keep`` is a share of the whole network, distributed over its layers."""
        return self.of != "channels"

    @property
    def whole(self) -> float:
        """The share of the whole network under a budget."""
        return self.keep[REST] if isinstance(self.keep, Mapping) else self.keep

    def check(self, call: str) -> None:
        """Check both arguments; ``call`` is the function or class named in errors.

        Raises:
            ArgumentTypeError: ``keep`` is neither a number nor a mapping from strings to numbers.
            ArgumentError: a share is outside (0, 1], ``of`` is unknown, the mapping is empty, or ``"*"`` is missing
                under a budget.
        """
        check_choice(call, "of", self.of, get_args(Of))
        if not isinstance(self.keep, Mapping):
            _check_share(call, self.keep, self.keep)
            return
        for pattern, share in self.keep.items():
            if not isinstance(pattern, str):
                raise _wrong_type(call, self.keep, pattern)
            _check_share(call, self.keep, share)
        if not self.keep:
            raise ArgumentError(f"{call}(keep={{}}): expected at least one pattern, for example keep={{'*': 0.5}}.")
        if self.is_budget and REST not in self.keep:
            example = {**self.keep, REST: 0.5}
            raise ArgumentError(
                f"{call}({self}): expected a share of the whole network's {self.unit} under '*', for example "
                f"keep={example}; or of='channels', which shrinks only the named layers."
            )

    def share_of(self, layers: Iterable[str]) -> float | None:
        """The share to keep of a width that ``layers`` write; ``None`` if no pattern matches any of them."""
        if not isinstance(self.keep, Mapping):
            return self.keep
        bound = self.bound_of(layers)
        return self.keep.get(REST) if bound is None else bound

    def bound_of(self, layers: Iterable[str]) -> float | None:
        """The share of the first pattern except ``"*"`` that matches one of ``layers``: a budget's lower bound."""
        layers = list(layers)
        found = (share for pattern, share in self._patterns() if any(fnmatchcase(layer, pattern) for layer in layers))
        return next(found, None)

    def check_patterns(self, call: str, layers: Sequence[str]) -> None:
        """Raise ``ArgumentError`` if a pattern matches none of ``layers``, the layers that can shrink."""
        for pattern, _ in self._patterns():
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                raise ArgumentError(
                    f"{call}({self}): {pattern!r} matches no layer whose size can change; expected a glob pattern that "
                    f"matches a dotted name, for example one of {some_of(map(repr, layers))}."
                )

    def _patterns(self) -> list[tuple[str, float]]:
        if not isinstance(self.keep, Mapping):
            return []
        return [(pattern, share) for pattern, share in self.keep.items() if pattern != REST]


def at_least(share: float) -> str:
    """``share`` rounded up to three digits, so that the budget can be met."""
    return f"{math.ceil(1000 * share) / 1000:.3f}"


def missed(report: RewriteReport, size: Size, planned: float | None = None) -> str | None:
    """A note if the result misses the budget by more than two percentage points; ``None`` if not, or without a budget.

    Args:
        report: the rewrite's report.
        size: the requested size.
        planned: the share that the chosen sizes should leave; ``None`` if the plan was carried out exactly.
    """
    if not size.is_budget:
        return None
    before, after = report.parameters_before, report.parameters_after
    if size.of == "flops":
        before, after = report.flops_before or 1, report.flops_after or 0
    left = after / before
    if abs(left - size.whole) <= 0.02:
        return None
    if planned is None or abs(left - planned) < 0.005:
        return f"{left:.1%} of the {size.unit} are left, the closest size found for the requested {size.whole:.1%}"
    why = "identical channels were merged" if left < planned else "fewer channels could be removed than planned"
    return f"{left:.1%} of the {size.unit} are left, not the requested {size.whole:.1%}: {why}"


def _check_share(call: str, keep: object, share: object) -> None:
    if isinstance(share, bool) or not isinstance(share, Real):
        raise _wrong_type(call, keep, share)
    if not 0 < float(share) <= 1:
        raise ArgumentError(f"{call}(keep={keep!r}): expected a share in (0, 1], for example keep=0.5.")


def _wrong_type(call: str, keep: object, found: object) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"{call}(keep={keep!r}): expected a number in (0, 1] or a mapping from layer patterns to such numbers, found "
        f"a {type(found).__name__}."
    )
