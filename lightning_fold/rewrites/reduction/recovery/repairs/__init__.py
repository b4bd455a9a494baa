"""Repairs of a network after the cut: one file and one line here for each."""

from lightning_fold.class_paths import resolve
from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair

_HERE = "lightning_fold.rewrites.reduction.recovery.repairs"

REPAIRS = {
    "none": f"{_HERE}.repair.NoRepair",
    "data-free": f"{_HERE}.fold_ar.FoldAR",
    "data": f"{_HERE}.statistics.Statistics",
}


def repair_of(call: str, repair: str | Repair, *, merging: bool) -> Repair:
    """The repair for a name, a class path or an object; ``merging`` says whether ``call`` merges channels.

    Raises:
        ArgumentError: the name is unknown, there is no such class, or the repair needs merged channels and ``call``
            merges none.
        ArgumentTypeError: ``repair`` is neither a name nor a repair.
    """
    found = resolve(call, "repair", repair, REPAIRS) if isinstance(repair, str) else repair
    if not isinstance(found, Repair):
        raise ArgumentTypeError(
            f"{call}(repair={repair!r}): expected a name or a Repair, found a {type(found).__name__}."
        )
    if found.for_merged_channels and not merging:
        names = ", ".join(repr(name) for name in REPAIRS if name != repair)
        raise ArgumentError(
            f"{call}(repair={repair!r}): this repair needs merged channels, and {call} merges none; expected one of "
            f"{names}, or the path of a class."
        )
    return found
