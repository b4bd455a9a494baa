"""Callbacks that rewrite once, at the end of training or at a given epoch."""

from typing import Any

import lightning

from lightning_fold.callbacks.base import Rewrite, RewriteCallback


class RewriteOnce(RewriteCallback):
    """Base of the callbacks that rewrite a network once.

    Args:
        method: name of the rewrite.
        at_epoch: epoch before which the network is rewritten, counted from 0, so that the rest of the training
            follows; -1 rewrites at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.
    """

    def __init__(self, method: str, at_epoch: int = -1, module: str = "", monitor: str = "accuracy/val") -> None:
        super().__init__(module, monitor)
        if at_epoch < -1:
            raise ValueError(f"{type(self).__name__}(at_epoch={at_epoch}): expected an epoch of at least 0, or -1.")
        self.method, self.at_epoch, self.done = method, at_epoch, False

    @property
    def finished(self) -> bool:
        """Whether the rewrite was done."""
        return self.done

    def change(self) -> Rewrite:
        """The rewrite, as a function of network, inputs and optimizers."""
        raise NotImplementedError

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Check that the rewrite comes before the end of training."""
        super().setup(trainer, pl_module, stage)
        epochs = trainer.max_epochs or 0
        if stage == "fit" and 0 <= epochs <= self.at_epoch and not trainer.fast_dev_run:
            raise ValueError(
                f"{type(self).__name__}(at_epoch={self.at_epoch}): expected an epoch below "
                f"Trainer(max_epochs={epochs}), or -1 for the end of training."
            )

    def begin_epoch(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Rewrite before the first batch of the given epoch."""
        if 0 <= self.at_epoch <= trainer.current_epoch:
            self._rewrite_once(trainer, pl_module)

    def finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Rewrite at the end of training."""
        if self.at_epoch == -1 and not trainer.interrupted:
            self._rewrite_once(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Whether the rewrite was done."""
        return super().state_dict() | {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an interrupted run."""
        super().load_state_dict(state_dict)
        self.done = state_dict["done"]

    def _rewrite_once(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.done:
            self.rewrite(trainer, pl_module, self.method, self.change())
            self.done = True
