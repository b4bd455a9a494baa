"""CycleSchedule: maps an epoch to its cycle and phase."""

from dataclasses import dataclass
from typing import Literal

from lightning_fold.errors import ArgumentError

Phase = Literal["dense", "shrink", "masked", "final"]


@dataclass(frozen=True)
class CycleSchedule:
    """Epochs of plain training, then cycles of two phases each, then the final epochs.

    Attributes:
        dense_epochs: epochs before the first cycle, at least 1.
        cycles: number of cycles, at least 1.
        shrink_epochs: epochs of each cycle before pruning, at least 0.
        masked_epochs: epochs of each cycle after pruning, at least 1.
    """

    dense_epochs: int
    cycles: int
    shrink_epochs: int
    masked_epochs: int

    def __str__(self) -> str:
        """The fields as arguments in a call."""
        return ", ".join(f"{name}={value}" for name, value in vars(self).items())

    @property
    def cycle_epochs(self) -> int:
        """Epochs of one cycle."""
        return self.shrink_epochs + self.masked_epochs

    @property
    def last_epoch(self) -> int:
        """The first epoch after the last cycle."""
        return self.dense_epochs + self.cycles * self.cycle_epochs

    @property
    def cycling_epochs(self) -> range:
        """The epochs of all cycles."""
        return range(self.dense_epochs, self.last_epoch)

    def phase(self, epoch: int) -> Phase:
        """The phase that ``epoch`` belongs to, counted from 0."""
        if epoch < self.dense_epochs:
            return "dense"
        if epoch >= self.last_epoch:
            return "final"
        return "shrink" if (epoch - self.dense_epochs) % self.cycle_epochs < self.shrink_epochs else "masked"

    def cycle(self, epoch: int) -> int:
        """The cycle that ``epoch`` belongs to, counted from 0."""
        return (epoch - self.dense_epochs) // self.cycle_epochs

    def cycles_before(self, epoch: int) -> int:
        """The number of cycles that have ended before ``epoch``."""
        return min(max(self.cycle(epoch), 0), self.cycles)

    def check(self, call: str) -> None:
        """Check that the numbers are in range.

        Raises:
            ArgumentError: the message names ``call`` and the number.
        """
        for name, lowest in (("dense_epochs", 1), ("cycles", 1), ("shrink_epochs", 0), ("masked_epochs", 1)):
            if getattr(self, name) < lowest:
                raise ArgumentError(f"{call}({name}={getattr(self, name)}): expected at least {lowest}.")
