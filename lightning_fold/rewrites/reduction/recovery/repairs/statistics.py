"""Statistics and scales of normalisation layers, from data."""

from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.repair import estimate_statistics, tune_layer_norms
from lightning_fold.surgery.transaction import Surgery

_TUNED_ON = 256  # examples: enough for two numbers per channel, since every position counts


class Statistics(Repair):
    """Re-estimate BatchNorm statistics batch by batch, then tune the scales and shifts of LayerNorms."""

    needs_batches = True

    def finish(self, surgery: Surgery, recovery: Recovery) -> None:
        """Run both steps; undo each if it increases the error on held-out inputs."""
        dense = recovery.dense
        assert dense is not None
        rows = recovery.norm_rows(surgery.model)
        recovery.if_better("BatchNorm re-estimation", surgery, lambda copy: estimate_statistics(copy, dense.batches))
        few = dense.examples(_TUNED_ON)
        tune = lambda copy: tune_layer_norms(dense.network, copy, few, rows)  # noqa: E731
        recovery.if_better("LayerNorm tuning", surgery, tune)
