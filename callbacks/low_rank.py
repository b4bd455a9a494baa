"""LowRankFactorization: splits layers into two of low rank at the end of training."""

from lightning_fold.callbacks.at_end import RewriteOnce
from lightning_fold.callbacks.base import Rewrite, check_share
from lightning_fold.rewrites.low_rank import factorize


class LowRankFactorization(RewriteOnce):
    """Replaces linear layers and convolutions by two of low rank each, at the end of training or before an epoch.

    Suggested: 0.5 without training afterwards, less after training with a smoothness penalty. It does not help layers
    that are already narrow: those are left alone.

    Source: the compressor of "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469).

    Args:
        keep_parameters: share of the parameters to keep, in (0, 1], allocated over the network.
        at_epoch: epoch before which the network is factorized, counted from 0; -1 factorizes at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self, keep_parameters: float = 0.5, at_epoch: int = -1, module: str = "", monitor: str = "accuracy/val"
    ) -> None:
        super().__init__("factorize", at_epoch, module, monitor)
        check_share("LowRankFactorization", "keep_parameters", keep_parameters, one=True)
        self.keep_parameters = keep_parameters

    def change(self) -> Rewrite:
        """Factorize."""
        return lambda network, inputs, optimizers: factorize(
            network, inputs, keep_parameters=self.keep_parameters, optimizers=optimizers
        )
