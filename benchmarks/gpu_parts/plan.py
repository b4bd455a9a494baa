"""Time: what each part may take, and how many epochs fit."""

import time
from dataclasses import dataclass

# Shares of the whole: correctness at most, what is left after training, and the last rows after latency. The rewrites
# of the last network go on, on the CPU, while latency is measured.
CORRECTNESS, AFTER_TRAINING, LAST_ROWS = 0.18, 0.2, 0.03
CORRECTNESS_TINY = 0.5

# The smooth network's share of the time for training.
SMOOTH = 0.6


@dataclass(frozen=True)
class Deadline:
    """A moment of the monotonic clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds until then; 0 once it has passed."""
        return max(self.at - time.monotonic(), 0.0)

    def earlier(self, seconds: float) -> "Deadline":
        """The moment so many seconds before."""
        return Deadline(self.at - seconds)


def epochs_that_fit(seconds: float, epoch_seconds: float, most: int) -> int:
    """Whole epochs in ``seconds``: at least 1, at most ``most``."""
    return max(1, min(most, int(seconds / max(epoch_seconds, 1e-9))))


def learning_rate(progress: float, peak: float, warmup: float = 0.15) -> float:
    """The rate at ``progress`` in [0, 1]: linear from a fifth of the peak to the peak, then linear to zero.

    It depends on the share of the training that is done alone, so that any number of epochs gets a whole schedule.
    """
    if progress < warmup:
        return peak * (0.2 + 0.8 * progress / warmup)
    return peak * max(1 - progress, 0.0) / (1 - warmup)
