"""LowRankFactorization: splits layers into pairs of low rank, at the end of training."""

from lightning_fold.callbacks.rewriting.base import Rewrite
from lightning_fold.callbacks.rewriting.once import RewriteOnce
from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.factorization.factorize import factorize
from lightning_fold.rewrites.size import Of, Size


class LowRankFactorization(RewriteOnce):
    """Replaces each linear layer or convolution by a pair of low rank, at the end of training or before an epoch.

    Suggested: 0.5 without further training, less after training with a smoothness penalty. It does not help narrow
    layers and leaves them unchanged.

    Source: the compressor of "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469).

    Args:
        keep: share to keep, in (0, 1], or a mapping from patterns of dotted layer names to shares: the first match
            counts, "*" is the rest; as in :func:`lightning_fold.factorize`.
        of: what ``keep`` is a share of: "parameters" or "flops" of the network, or "channels", the full rank of each
            layer.
        batches: number of training batches on which to minimize the error of each layer's outputs at its rank; 0
            uses the weights only.
        at_epoch: factorize before this epoch, counted from 0; -1 factorizes at the end.
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
        batches: int = 0,
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__("factorize", Size(keep, of), at_epoch, module, monitor, batches)

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """A function that factorizes the network."""
        return lambda network, inputs, optimizers: factorize(
            network, inputs, keep=self.keep, of=self.of, batches=batches, optimizers=optimizers
        )
