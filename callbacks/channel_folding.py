"""ChannelFolding: merges channels at the end of training."""

from typing import Literal

from lightning_fold.callbacks.rewriting.base import Rewrite
from lightning_fold.callbacks.rewriting.once import ReduceOnce
from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.calibration import CalibrationSource
from lightning_fold.rewrites.reduction.fold import fold
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.size import Of, Size


class ChannelFolding(ReduceOnce):
    """Merges similar channels, at the end of training or before an epoch: k-means, then mean and sum.

    Suggested: keep 0.7 to 0.9 of the channels without further training, or as little as 0.3 with ``at_epoch`` some
    epochs before the end. It suits wide networks (64 channels and more), which have many similar channels; on narrow
    ones pruning loses less.

    Source: "Cut Less, Fold More" (arXiv 2602.18116), "Model Folding" (arXiv 2502.10216).

    Args:
        keep: share to keep, in (0, 1], or a mapping from patterns of dotted layer names to shares: the first match
            counts, "*" is the rest; as in :func:`lightning_fold.fold`.
        of: what ``keep`` is a share of: "parameters" or "flops" of the network, or the "channels" of each width.
        compensate: "none", "bias" (refits the biases of the following layers) or "least-squares" (also their weights).
        repair: "data-free" rescales each BatchNorm after a merged layer (Fold-AR) if that helps on the batches or on
            noise; "data" re-estimates BatchNorm statistics and tunes LayerNorms on the batches; "none" does nothing; or
            the path of a class.
        batches: number of training batches to use, the last one held out; 0 estimates values from BatchNorm statistics.
        calibration: "auto" uses the batches, or noise if there are none; "noise" always uses noise; or the path of a
            class or function.
        skip: layers whose input and output widths are kept: patterns, as in file names, of dotted names in the network.
        at_epoch: fold before this epoch, counted from 0; -1 folds at the end.
        seed: seed of k-means.
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
        compensate: Literal["none", "bias", "least-squares"] = "none",
        repair: str | Repair = "data-free",
        batches: int = 0,
        calibration: str | CalibrationSource = "auto",
        skip: list[str] = [],  # noqa: B006  read only
        at_epoch: int = -1,
        seed: int = 0,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__(
            "fold", Size(keep, of), compensate, repair, batches, calibration, skip, at_epoch, module, monitor
        )
        self.seed = seed

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """A function that folds the network."""
        return lambda network, inputs, optimizers: fold(
            network, inputs, seed=self.seed, optimizers=optimizers, **self.common(batches)
        )
