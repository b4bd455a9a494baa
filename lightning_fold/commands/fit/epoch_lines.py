"""EpochLines: prints one line per epoch when the output is not a terminal."""

import sys
import time

import lightning

from lightning_fold.complexity import count_parameters
from lightning_fold.storage.checkpoints import network_of, record_of


class EpochLines(lightning.Callback):
    """Writes one line to stdout after each training epoch, for output in which a progress bar is unreadable.

    A line holds the epoch, the logged training loss, a validation metric if the epoch was validated (the first that is
    not a loss, or else the loss), the network's parameters and factor, the duration of the epoch and the time left,
    estimated from the mean of the epochs so far. Only the first process writes; ``fast_dev_run`` writes nothing.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._seconds: list[float] = []
        self._validated = False

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._started, self._validated = time.monotonic(), False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note that the metrics belong to this epoch."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the line."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._seconds.append(time.monotonic() - self._started)
        parts = [*self._epoch(trainer), *self._metrics(trainer), _size(pl_module), *self._times(trainer)]
        sys.stdout.write("  ".join(parts) + "\n")
        sys.stdout.flush()

    def _epoch(self, trainer: lightning.Trainer) -> list[str]:
        last = trainer.max_epochs or -1
        return [f"epoch {trainer.current_epoch + 1}" + (f" of {last}" if last > 0 else "")]

    def _metrics(self, trainer: lightning.Trainer) -> list[str]:
        names = list(trainer.callback_metrics)
        losses = [name for name in names if "loss" in name and "train" in name]
        validation = [name for name in names if "val" in name and self._validated]
        validation.sort(key=lambda name: "loss" in name)  # stable: metrics other than losses come first
        chosen = dict.fromkeys([*losses[:1], *validation[:1]])
        return [f"{name} {float(trainer.callback_metrics[name]):.4g}" for name in chosen]

    def _times(self, trainer: lightning.Trainer) -> list[str]:
        left = (trainer.max_epochs or -1) - trainer.current_epoch - 1
        mean = sum(self._seconds) / len(self._seconds)
        return [duration(self._seconds[-1]), *([f"{duration(left * mean)} left"] if left >= 0 else [])]


def duration(seconds: float) -> str:
    """Seconds as a short text: ``0.4 s``, ``42 s``, ``3 min 20 s``, ``1 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _size(pl_module: lightning.LightningModule) -> str:
    parameters, dense = count_parameters(network_of(pl_module)), record_of(pl_module).dense
    before = parameters if dense is None else dense.parameters
    return f"{parameters:,} parameters ({before / max(parameters, 1):.2f}x)"
