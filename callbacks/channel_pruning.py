"""ChannelPruning: removes whole channels at the end of training."""

from typing import Literal

from lightning_fold.arguments import check_choice
from lightning_fold.callbacks.rewriting.base import Rewrite
from lightning_fold.callbacks.rewriting.once import ReduceOnce
from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.reduction.prune import prune


class ChannelPruning(ReduceOnce):
    """Removes the least important channels of every width, at the end of training or before an epoch.

    Suggested: ``at_epoch`` some epochs before the end, so that the network recovers. Without training afterwards it
    costs much accuracy beyond a ratio of about 0.2; with ``keep_parameters``, ``compensate="least-squares"`` and some
    ``batches`` (about a thousand examples together) much less.

    Args:
        ratio: share of the channels of each width that goes, in [0, 1); 0.3 where no size is given.
        keep_parameters: share of the parameters to keep, in (0, 1], in place of ``ratio``.
        keep_flops: share of the floating-point operations to keep, in (0, 1], in place of ``ratio``.
        importance: "l1" or "l2" norm of the weights that write a channel, or by activations: "activation",
            "reconstruction".
        compensate: "least-squares" solves for the weights of the layers behind, "bias" for their biases alone.
        repair: "data" estimates BatchNorm statistics and tunes LayerNorms on the batches, "none" leaves them.
        batches: training batches to look at, the last of them held out; 0 predicts values from BatchNorm statistics.
        skip: patterns, as in file names, of the network's own dotted names of layers; what they write and read stays.
        at_epoch: epoch before which the network is pruned, counted from 0; -1 prunes at the end.
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
        importance: Literal["l1", "l2", "activation", "reconstruction"] = "l2",
        compensate: Literal["none", "bias", "least-squares"] = "none",
        repair: Literal["none", "data"] = "none",
        batches: int = 0,
        skip: list[str] = [],  # noqa: B006  read only
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        repairs = ("none", "data")
        size = {"ratio": ratio, "keep_parameters": keep_parameters, "keep_flops": keep_flops}
        super().__init__("prune", size, compensate, repair, repairs, batches, skip, at_epoch, module, monitor)
        check_choice("ChannelPruning", "importance", importance, ("l1", "l2", "activation", "reconstruction"))
        self.importance = importance

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """Prune."""
        return lambda network, inputs, optimizers: prune(
            network, inputs, importance=self.importance, optimizers=optimizers, **self.common(batches)
        )
