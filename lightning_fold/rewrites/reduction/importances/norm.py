"""Norms of the weights that write a channel."""

from torch import Tensor, nn

from lightning_fold.rewrites.calibration import precise
from lightning_fold.rewrites.reduction.importances.importance import Importance, Score, written_rows
from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.structure.groups import ChannelGroup


class Norm(Importance):
    """The norm of all weights that write a channel.

    Args:
        order: order of the norm, 1 or 2.
    """

    def __init__(self, order: int = 2) -> None:
        self.order = order

    def prepare(self, context: SelectionContext) -> Score:
        """Return :meth:`score`: the norm only needs the network."""
        return self.score

    def score(self, model: nn.Module, group: ChannelGroup) -> Tensor:
        """(channels,) the norms."""
        return precise(written_rows(model, group)).norm(p=self.order, dim=1).cpu()
