"""The arguments that prune and fold share: the layers to skip, and the steps after the cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_fold.arguments import check_choice
from lightning_fold.errors import ArgumentError
from lightning_fold.rewrites.calibration import CalibrationSource, calibration_source
from lightning_fold.rewrites.reduction.recovery.repairs import repair_of
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair

Compensate = Literal["none", "bias", "least-squares"]


@dataclass(frozen=True)
class Options:
    """The layers to skip, and the steps after the cut."""

    compensate: Compensate
    repair: Repair
    batches: list[Any] | None
    source: CalibrationSource
    seed: int = 0
    skip: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        call: str,
        compensate: Compensate,
        repair: str | Repair,
        batches: Iterable[Any] | None,
        calibration: str | CalibrationSource,
        seed: int,
        skip: Sequence[str],
        *,
        merging: bool,
    ) -> "Options":
        """Check the arguments of ``call``; ``merging`` says whether it merges channels.

        Raises:
            ArgumentError: a value is unknown, batches are missing, or ``skip`` is a string.
            ArgumentTypeError: ``repair`` or ``calibration`` has the wrong type.
        """
        if isinstance(skip, str):
            raise ArgumentError(f"{call}(skip={skip!r}): expected a list of patterns, skip=[{skip!r}].")
        check_choice(call, "compensate", compensate, get_args(Compensate))
        found = repair_of(call, repair, merging=merging)
        listed = None if batches is None else list(batches)
        if found.needs_batches and not listed:
            raise ArgumentError(f"{call}(repair={repair!r}): expected batches=..., a loader or a list of batches.")
        if listed is not None and not listed:
            raise ArgumentError(f"{call}(batches=[]): expected at least one batch of inputs, or of (inputs, ...).")
        return cls(compensate, found, listed, calibration_source(call, calibration), seed, skip)
