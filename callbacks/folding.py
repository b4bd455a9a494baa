"""ChannelFolding: merges channels at the end of training."""

from typing import Literal

from lightning_fold.callbacks.at_end import RewriteOnce
from lightning_fold.callbacks.base import Rewrite, check_choice, check_share
from lightning_fold.rewrites.folding import fold


class ChannelFolding(RewriteOnce):
    """Merges channels that do alike at the end of training (or before an epoch): k-means, mean and sum.

    Suggested: small ratios (0.1 to 0.3) without training afterwards; with ``at_epoch`` some epochs before the end, up
    to 0.7. It helps wide networks (64 channels and more), whose channels are alike; on thin ones pruning loses less.

    Source: "Cut Less, Fold More" (arXiv 2602.18116), "Model Folding" (arXiv 2502.10216).

    Args:
        ratio: share of the channels of each width that goes, in [0, 1).
        repair: "data-free" rescales each BatchNorm after a merged layer (Fold-AR), "none" leaves them.
        at_epoch: epoch before which the network is folded, counted from 0; -1 folds at the end.
        seed: seed of k-means.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        ratio: float = 0.3,
        repair: Literal["data-free", "none"] = "data-free",
        at_epoch: int = -1,
        seed: int = 0,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__("fold", at_epoch, module, monitor)
        check_share("ChannelFolding", "ratio", ratio)
        check_choice("ChannelFolding", "repair", repair, ("data-free", "none"))
        self.ratio, self.repair, self.seed = ratio, repair, seed

    def change(self) -> Rewrite:
        """Fold."""
        return lambda network, inputs, optimizers: fold(
            network, inputs, ratio=self.ratio, repair=self.repair, seed=self.seed, optimizers=optimizers
        )
