"""AccuracyLimit: how far the monitored metric may fall below the dense network's."""

from dataclasses import dataclass

import lightning

from lightning_fold.errors import ArgumentError
from lightning_fold.storage.checkpoints import Snapshot


@dataclass(frozen=True)
class AccuracyLimit:
    """A limit on the drop of a validation metric: a callback's ``max_accuracy_drop``.

    Attributes:
        call: name of the callback, for errors.
        drop: largest drop allowed, in [0, 1]; 1 means no limit.
        monitor: name of the metric, higher is better.
    """

    call: str
    drop: float
    monitor: str

    def __post_init__(self) -> None:
        """Check that the drop is in range."""
        if not 0 <= self.drop <= 1:
            raise ArgumentError(f"{self.call}(max_accuracy_drop={self.drop}): expected a share in [0, 1]; 1: no limit.")

    @property
    def active(self) -> bool:
        """Whether there is a limit."""
        return self.drop < 1

    def check_trainer(self, trainer: lightning.Trainer) -> None:
        """If there is a limit, refuse a trainer that does not validate after every epoch."""
        settings = {name: getattr(trainer, name) for name in ("check_val_every_n_epoch", "limit_val_batches")}
        if self.active and (settings["check_val_every_n_epoch"] != 1 or settings["limit_val_batches"] == 0):
            written = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise ArgumentError(
                f"{self.call}(max_accuracy_drop={self.drop}): expected a validation after every epoch, "
                f"found Trainer({written}). Set check_val_every_n_epoch=1 and limit_val_batches above 0, or "
                "max_accuracy_drop=1 for no limit."
            )

    def check_logged(self, trainer: lightning.Trainer) -> None:
        """If there is a limit, refuse a validation that did not log the metric."""
        if self.active and self.monitor not in trainer.callback_metrics:
            raise self._no_metric()

    def exceeded(self, dense: Snapshot | None, metric: float | None) -> bool:
        """Whether ``metric`` is further below the dense network's than allowed.

        Raises:
            ArgumentError: there is a limit, and one of the two metrics was not measured.
        """
        if not self.active or dense is None:
            return False
        if metric is None or self.monitor not in dense.metrics:
            raise self._no_metric()
        return dense.metrics[self.monitor] - metric > self.drop

    def _no_metric(self) -> ArgumentError:
        return ArgumentError(
            f"{self.call}(max_accuracy_drop={self.drop}, monitor={self.monitor!r}): no such metric was "
            "logged by the validation after each epoch. Log it in validation_step, or name another metric."
        )
