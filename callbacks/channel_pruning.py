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

    Suggested: ``at_epoch`` some epochs before the end, so that the network recovers. Without training afterwards it
    costs much accuracy where fewer than 80 % of the channels stay; as a budget of parameters, with
    ``compensate="least-squares"`` and some ``batches`` (about a thousand examples together), much less.

    Args:
        keep: share that stays, in (0, 1], or a mapping from patterns of dotted layer names to such shares, the first
            that matches counts, "*" for the rest; as in :func:`lightning_fold.prune`.
        of: what that is a share of: "parameters" or "flops" of the network, or the "channels" of each width.
        importance: "l1" or "l2" norm of the weights that write a channel, or by activations: "activation",
            "reconstruction"; or the path of a class.
        compensate: "none"; "bias" fits the biases of the following layers, "least-squares" also their weights.
        repair: "data" estimates BatchNorm statistics and tunes LayerNorms on the batches, "none" leaves them; or the
            path of a class.
        batches: training batches to look at, the last of them held out; 0 predicts values from BatchNorm statistics.
        calibration: "auto" looks at the batches, or at noise where there are none; "noise" always at noise; or the path
            of a class or function.
        skip: patterns, as in file names, of the network's own dotted names of layers; what they write and read stays.
        at_epoch: epoch before which the network is pruned, counted from 0; -1 prunes at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.

    Raises:
        TypeError: ``keep`` is neither a number nor a mapping.
        ValueError: a value is out of range.
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
        """Prune."""
        return lambda network, inputs, optimizers: prune(
            network, inputs, importance=self.importance, optimizers=optimizers, **self.common(batches)
        )
