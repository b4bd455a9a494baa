"""ChannelPruning: removes whole channels at the end of training."""

from typing import Literal

from lightning_fold.callbacks.at_end import RewriteOnce
from lightning_fold.callbacks.base import Rewrite, check_choice, check_share
from lightning_fold.rewrites.pruning import prune


class ChannelPruning(RewriteOnce):
    """Removes the least important channels of every width, at the end of training or before an epoch.

    Suggested: ``at_epoch`` some epochs before the end, so that the network recovers. Without training afterwards it
    costs much accuracy beyond a ratio of about 0.2.

    Args:
        ratio: share of the channels of each width that goes, in [0, 1).
        importance: norm of the weights that write a channel, "l1" or "l2".
        at_epoch: epoch before which the network is pruned, counted from 0; -1 prunes at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        ratio: float = 0.3,
        importance: Literal["l1", "l2"] = "l2",
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__("prune", at_epoch, module, monitor)
        check_share("ChannelPruning", "ratio", ratio)
        check_choice("ChannelPruning", "importance", importance, ("l1", "l2"))
        self.ratio, self.importance = ratio, importance

    def change(self) -> Rewrite:
        """Prune."""
        return lambda network, inputs, optimizers: prune(
            network, inputs, ratio=self.ratio, importance=self.importance, optimizers=optimizers
        )
