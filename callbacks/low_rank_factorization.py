"""LowRankFactorization: splits layers into two of low rank at the end of training."""

from lightning_fold.arguments import check_count
from lightning_fold.callbacks.rewriting.base import Rewrite
from lightning_fold.callbacks.rewriting.once import RewriteOnce, one_size
from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.factorization.factorize import factorize


class LowRankFactorization(RewriteOnce):
    """Replaces linear layers and convolutions by two of low rank each, at the end of training or before an epoch.

    Suggested: 0.5 without training afterwards, less after training with a smoothness penalty. It does not help layers
    that are already narrow: those are left alone.

    Source: the compressor of "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469).

    Args:
        keep_parameters: share of the parameters to keep, in (0, 1], allocated over the network; 0.5 where no size is
            given.
        keep_flops: share of the floating-point operations to keep in place of that, in (0, 1].
        whiten_batches: training batches on whose inputs the error of each layer's outputs becomes the smallest of its
            rank; 0 looks at the weights alone.
        at_epoch: epoch before which the network is factorized, counted from 0; -1 factorizes at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.

    Raises:
        ValueError: a value is out of range, or two sizes are given.
    """

    def __init__(
        self,
        keep_parameters: float | None = None,
        keep_flops: float | None = None,
        whiten_batches: int = 0,
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__("factorize", at_epoch, module, monitor, whiten_batches)
        size = {"keep_parameters": keep_parameters, "keep_flops": keep_flops}
        self.size = one_size("LowRankFactorization", size, {"keep_parameters": 0.5})
        check_count("LowRankFactorization", "whiten_batches", whiten_batches)
        self.keep_parameters, self.keep_flops = keep_parameters, keep_flops
        self.whiten_batches = whiten_batches

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """Factorize."""
        return lambda network, inputs, optimizers: factorize(
            network, inputs, batches=batches, optimizers=optimizers, **self.size
        )
