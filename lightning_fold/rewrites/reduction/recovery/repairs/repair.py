"""The base class of repairs."""

from typing import Any, ClassVar

from lightning_fold.rewrites.reduction.cut import Cut
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.surgery.transaction import Surgery


class Repair:
    """Improves a network whose channels were merged or removed. Subclass it to write your own.

    All three steps are optional. One object may repair several networks, so it must not store anything about them.

    Attributes:
        needs_batches: whether it needs real data, so that the caller must pass ``batches``.
        for_merged_channels: whether it only works on merged channels, not on removed ones.
        does_something: whether it needs the dense network at all.
    """

    needs_batches: ClassVar[bool] = False
    for_merged_channels: ClassVar[bool] = False
    does_something: ClassVar[bool] = True

    def before_cut(self, surgery: Surgery, cut: Cut) -> Any:
        """Read the network while it still has all channels; the result is passed to :meth:`after_cut`."""
        return None

    def after_cut(self, surgery: Surgery, recovery: Recovery, found: Any) -> None:
        """Run right after channels were merged and removed; ``found`` is the result of :meth:`before_cut`."""

    def finish(self, surgery: Surgery, recovery: Recovery) -> None:
        """Run last, after least squares.

        ``recovery.if_better(name, surgery, step)`` runs ``step(network)`` on a copy and takes over its values unless
        they increase the error on held-out inputs; ``recovery.dense`` is the dense network with inputs.
        """


class NoRepair(Repair):
    """Change nothing after the cut."""

    does_something = False
