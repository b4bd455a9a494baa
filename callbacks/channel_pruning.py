"""ChannelPruning: removes whole channels at the end of training."""

from typing import Literal

from lightning_fold.callbacks.rewriting.base import Rewrite
from lightning_fold.callbacks.rewriting.once import ReduceOnce
from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.calibration import CalibrationSource
from lightning_fold.rewrites.reduction.importances import importance_of
from lightning_fold.rewrites.reduction.importances.importance import Importance
from lightning_fold.rewrites.reduction.prune import prune
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.size import Of, Size


class ChannelPruning(ReduceOnce):
    """Removes the least important channels of every width, at the end of training or before an epoch.

    Suggested: ``at_epoch`` some epochs before the end, so that the network can recover. Without further training,
    keeping fewer than 80 % of the channels costs much accuracy. A budget of parameters with
    ``compensate="least-squares"`` and a few ``batches`` (about a thousand examples in all) costs much less.

    Args:
        keep: share to keep, in (0, 1], or a mapping from patterns of dotted layer names to shares: the first match
            counts, "*" is the rest; as in :func:`lightning_fold.prune`.
        of: what ``keep`` is a share of: "parameters" or "flops" of the network, or the "channels" of each width.
        importance: "l1" or "l2", the norm of the weights that produce a channel; "activation" or "reconstruction",
            which use activations; or the path of a class.
        compensate: "none", "bias" (refits the biases of the following layers) or "least-squares" (also their weights).
        repair: "data" re-estimates BatchNorm statistics and tunes LayerNorms on the batches; "none" does nothing; or
            the path of a class.
        batches: number of training batches to use, the last one held out; 0 estimates values from BatchNorm statistics.
        calibration: "auto" uses the batches, or noise if there are none; "noise" always uses noise; or the path of a
            class or function.
        skip: layers whose input and output widths are kept: patterns, as in file names, of dotted names in the network.
        at_epoch: prune before this epoch, counted from 0; -1 prunes at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.

    Raises:
        ArgumentTypeError: ``keep`` is neither a number nor a mapping.
        ArgumentError: a value is out of range.
    """

    def __init__(
        self,
        keep: float | dict[str, float] = 0.5,
        of: Of = "parameters",
        importance: str | Importance = "l2",
        compensate: Literal["none", "bias", "least-squares"] = "none",
        repair: str | Repair = "none",
        batches: int = 0,
        calibration: str | CalibrationSource = "auto",
        skip: list[str] = [],  # noqa: B006  read only
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__(
            "prune", Size(keep, of), compensate, repair, batches, calibration, skip, at_epoch, module, monitor
        )
        importance_of("ChannelPruning", importance)
        self.importance = importance

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """A function that prunes the network."""
        return lambda network, inputs, optimizers: prune(
            network, inputs, importance=self.importance, optimizers=optimizers, **self.common(batches)
        )
