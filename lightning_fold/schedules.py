"""Learning-rate schedules for training in phases."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_fold.errors import ArgumentError


class PhasedCosine(LRScheduler):
    """Follows a cosine in each phase, from one share of the optimizer's learning rate to another.

    Args:
        optimizer: the optimizer.
        epochs: epochs of each phase, each at least 1; after the last phase its end value is kept.
        starts: share of the learning rate at the start of each phase, in [0, 1].
        ends: share of the learning rate at the end of each phase, in [0, 1].
        last_epoch: index of the last epoch trained so far, -1 for none.

    Raises:
        ArgumentError: the lists have different lengths, or a value is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: Sequence[int],
        starts: Sequence[float],
        ends: Sequence[float],
        last_epoch: int = -1,
    ) -> None:
        in_range = all(0 <= share <= 1 for share in (*starts, *ends)) and all(length >= 1 for length in epochs)
        if not epochs or not len(epochs) == len(starts) == len(ends) or not in_range:
            raise ArgumentError(
                f"PhasedCosine(epochs={list(epochs)}, starts={list(starts)}, ends={list(ends)}): expected three "
                "lists of the same length, epochs of at least 1, starts and ends in [0, 1]."
            )
        self.epochs, self.starts, self.ends = list(epochs), list(starts), list(ends)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group in the next epoch."""
        share = self._share(self.last_epoch)
        return [share * base for base in self.base_lrs]

    def _share(self, epoch: int) -> float:
        for length, start, end in zip(self.epochs, self.starts, self.ends, strict=True):
            if epoch < length:
                return end + (start - end) * (1 + math.cos(math.pi * epoch / length)) / 2
            epoch -= length
        return self.ends[-1]
