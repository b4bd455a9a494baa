"""LowRankFactorization: splits layers into two of low rank at the end of training."""

from lightning_fold.callbacks.rewriting.base import Rewrite
from lightning_fold.callbacks.rewriting.once import RewriteOnce
from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.factorization.factorize import factorize
from lightning_fold.rewrites.size import Of, Size


class LowRankFactorization(RewriteOnce):
    """Replaces linear layers and convolutions by two of low rank each, at the end of training or before an epoch.

    Suggested: 0.5 without training afterwards, less after training with a smoothness penalty. It does not help layers
    that are already narrow: those are left alone.

    Source: the compressor of "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469).

    Args:
        keep: share that stays, in (0, 1], or a mapping from patterns of dotted layer names to such shares, the first
            that matches counts, "*" for the rest; as in :func:`lightning_fold.factorize`.
        of: what that is a share of: "parameters" or "flops" of the network, or "channels", the full rank of each layer.
        batches: training batches on whose inputs the error of each layer's outputs becomes the smallest of its
            rank; 0 looks at the weights alone.
        at_epoch: epoch before which the network is factorized, counted from 0; -1 factorizes at the end.
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
        batches: int = 0,
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__("factorize", Size(keep, of), at_epoch, module, monitor, batches)

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """Factorize."""
        return lambda network, inputs, optimizers: factorize(
            network, inputs, keep=self.keep, of=self.of, batches=batches, optimizers=optimizers
        )
