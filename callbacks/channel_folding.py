"""ChannelFolding: merges channels at the end of training."""

from typing import Literal

from lightning_fold.callbacks.rewriting.base import Rewrite
from lightning_fold.callbacks.rewriting.once import ReduceOnce
from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.reduction.fold import fold


class ChannelFolding(ReduceOnce):
    """Merges channels that do alike at the end of training (or before an epoch): k-means, mean and sum.

    Suggested: small ratios (0.1 to 0.3) without training afterwards; with ``at_epoch`` some epochs before the end, up
    to 0.7. It helps wide networks (64 channels and more), whose channels are alike; on thin ones pruning loses less.

    Source: "Cut Less, Fold More" (arXiv 2602.18116), "Model Folding" (arXiv 2502.10216).

    Args:
        ratio: share of the channels of each width that goes, in [0, 1); 0.3 where no size is given.
        keep_parameters: share of the parameters to keep, in (0, 1], in place of ``ratio``.
        keep_flops: share of the floating-point operations to keep, in (0, 1], in place of ``ratio``.
        compensate: "least-squares" solves for the weights of the layers behind, "bias" for their biases alone.
        repair: "data-free" rescales each BatchNorm after a merged layer (Fold-AR) where that helps on the batches or on
            noise, "data" estimates BatchNorm statistics and tunes LayerNorms on the batches, "none" leaves them.
        batches: training batches to look at, the last of them held out; 0 predicts values from BatchNorm statistics.
        skip: patterns, as in file names, of the network's own dotted names of layers; what they write and read stays.
        at_epoch: epoch before which the network is folded, counted from 0; -1 folds at the end.
        seed: seed of k-means.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.

    Raises:
        ValueError: a value is out of range, or two sizes are given.
    """

    def __init__(
        self,
        ratio: float | None = None,
        keep_parameters: float | None = None,
        keep_flops: float | None = None,
        compensate: Literal["none", "bias", "least-squares"] = "none",
        repair: Literal["data-free", "none", "data"] = "data-free",
        batches: int = 0,
        skip: list[str] = [],  # noqa: B006  read only
        at_epoch: int = -1,
        seed: int = 0,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        repairs = ("data-free", "none", "data")
        size = {"ratio": ratio, "keep_parameters": keep_parameters, "keep_flops": keep_flops}
        super().__init__("fold", size, compensate, repair, repairs, batches, skip, at_epoch, module, monitor)
        self.seed = seed

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """Fold."""
        return lambda network, inputs, optimizers: fold(
            network, inputs, seed=self.seed, optimizers=optimizers, **self.common(batches)
        )
