"""What a repair is."""

from typing import Any, ClassVar

from lightning_fold.rewrites.reduction.cut import Cut
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.surgery.transaction import Surgery


class Repair:
    """What is done about a network whose channels were merged or removed. Subclass it for one of your own.

    Each of the three steps may be left out. An object may serve several networks, so it keeps nothing about any.

    Attributes:
        needs_batches: whether it can only work on real data, so that the rewrite must be given ``batches``.
        for_merged_channels: whether it has nothing to do where channels are only removed.
        does_something: whether it looks at the dense network at all.
    """

    needs_batches: ClassVar[bool] = False
    for_merged_channels: ClassVar[bool] = False
    does_something: ClassVar[bool] = True

    def before_cut(self, surgery: Surgery, cut: Cut) -> Any:
        """What is needed of the network while it still has all its channels; :meth:`after_cut` gets it."""
        return None

    def after_cut(self, surgery: Surgery, recovery: Recovery, found: Any) -> None:
        """Right after channels were merged and removed; ``found`` is what :meth:`before_cut` returned."""

    def finish(self, surgery: Surgery, recovery: Recovery) -> None:
        """Last, after least squares.

        ``recovery.if_better(name, surgery, step)`` does ``step(network)`` to a copy and takes its values over unless
        they make the error on held-out inputs larger; ``recovery.dense`` is the dense network with inputs.
        """


class NoRepair(Repair):
    """Leave the network as the cut left it."""

    does_something = False
