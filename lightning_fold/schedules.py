"""Learning-rate schedules for trainings that run in phases."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class PhasedCosine(LRScheduler):
    """A cosine from the optimizer's learning rate down to a share of it, begun anew in every phase.

    Args:
        optimizer: the optimizer.
        epochs: epochs of each phase, each at least 1; the last phase's end holds afterwards.
        ends: share of the learning rate at the end of each phase, in [0, 1]; 1 holds it constant.
        last_epoch: index of the last epoch that was trained, -1 for none.

    Raises:
        ValueError: the lists have different lengths, or a value is out of range.
    """

    def __init__(
        self, optimizer: Optimizer, epochs: Sequence[int], ends: Sequence[float], last_epoch: int = -1
    ) -> None:
        if len(epochs) != len(ends) or not epochs or min(epochs) < 1 or not all(0 <= end <= 1 for end in ends):
            raise ValueError(
                f"PhasedCosine(epochs={list(epochs)}, ends={list(ends)}): expected two lists of one length, epochs of at "
                "least 1 and ends in [0, 1]."
            )
        self.epochs, self.ends = list(epochs), list(ends)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The learning rate of each parameter group in the epoch to come."""
        return [base * self._share(self.last_epoch) for base in self.base_lrs]

    def _share(self, epoch: int) -> float:
        for length, end in zip(self.epochs, self.ends, strict=True):
            if epoch < length:
                return end + (1 - end) * (1 + math.cos(math.pi * epoch / length)) / 2
            epoch -= length
        return self.ends[-1]
