"""Building blocks for custom methods, importances, repairs and calibrations; docs/extending.md has examples of each."""

from lightning_fold.inputs import call
from lightning_fold.rewrites.calibration import (
    Calibration,
    CalibrationSource,
    from_batches,
    from_noise,
    mean_squares,
    second_moments,
)
from lightning_fold.rewrites.method import Method
from lightning_fold.rewrites.reduction.importances.importance import Importance, Score, channel_rows
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.rewrites.size import Keep, Of, Size
from lightning_fold.rewrites.transaction import rewrite
from lightning_fold.surgery.transaction import Surgery

__all__ = [
    "Calibration",
    "CalibrationSource",
    "Importance",
    "Keep",
    "Method",
    "Of",
    "Recovery",
    "Repair",
    "Score",
    "SelectionContext",
    "Size",
    "Surgery",
    "call",
    "channel_rows",
    "from_batches",
    "from_noise",
    "mean_squares",
    "rewrite",
    "second_moments",
]
