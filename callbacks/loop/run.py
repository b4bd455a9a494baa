"""CompressionRun: a training run as callbacks see it, with everything that a rewrite needs."""

from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from lightning_fold.callbacks.loop.batches import training_batches
from lightning_fold.callbacks.loop.inputs import global_inputs, network_inputs
from lightning_fold.inputs import Inputs
from lightning_fold.storage.checkpoints import CompressionRecord, Snapshot, network_of, record_of


@dataclass
class CompressionRun:
    """A training run as a callback sees it; each Lightning hook creates one and passes it on.

    Attributes:
        trainer: Lightning's trainer.
        pl_module: the LightningModule being trained.
        example: the network's inputs for the first batch of the epoch, the same on every process; ``None`` before it.
    """

    trainer: lightning.Trainer
    pl_module: lightning.LightningModule
    example: Inputs | None = None

    @property
    def network(self) -> nn.Module:
        """The network being compressed, inside the LightningModule."""
        return network_of(self.pl_module)

    @property
    def record(self) -> CompressionRecord:
        """The record of all rewrites of the network, stored in checkpoints."""
        return record_of(self.pl_module)

    @property
    def dense(self) -> Snapshot | None:
        """The network before its first rewrite; ``None`` if it was not rewritten yet."""
        return self.record.dense

    @property
    def inputs(self) -> Inputs:
        """The example; it must exist."""
        assert self.example is not None, "a rewrite needs inputs: at least one training batch"
        return self.example

    @property
    def optimizers(self) -> list[Optimizer]:
        """The trainer's optimizers, which rewrites update."""
        return self.trainer.optimizers

    @property
    def callbacks(self) -> list[Any]:
        """All callbacks of the trainer, in order."""
        return self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0; at the end, the number of epochs."""
        return self.trainer.current_epoch

    @property
    def place(self) -> str:
        """The current position: "epoch 3 of 14", or "epoch 3" if training is limited by steps or time only."""
        epochs = self.trainer.max_epochs
        return f"epoch {self.epoch}" + (f" of {epochs}" if epochs is not None and epochs >= 0 else "")

    @property
    def fitting(self) -> bool:
        """Whether ``fit`` is running, past its sanity check."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    @property
    def fast_dev_run(self) -> bool:
        """Whether the trainer runs only a few batches as a trial, too few for a whole schedule."""
        return bool(getattr(self.trainer, "fast_dev_run", False))

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first optimizer group that holds a parameter of the network; 0 if none does."""
        own = {id(parameter) for parameter in self.network.parameters()}
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return next((float(g["lr"]) for g in groups if any(id(parameter) in own for parameter in g["params"])), 0.0)

    def metric(self, name: str) -> float | None:
        """The last logged value of the metric ``name``, the same on every process; ``None`` if it was not logged."""
        found = self.trainer.callback_metrics.get(name)
        return None if found is None else self.trainer.strategy.broadcast(float(found))

    def look(self, batch: Any, batch_idx: int) -> Inputs:
        """Set the example to the network's inputs for ``batch``, the same on every process so that all decide alike."""
        self.example = global_inputs(self.trainer, network_inputs(self.pl_module, batch, batch_idx))
        return self.example

    def batches(self, count: int, *, epoch: int | None = None) -> list[Any]:
        """The first ``count`` training batches; ``epoch``, if given, is set on the samplers."""
        return training_batches(self.trainer, self.pl_module, count, epoch=epoch)

    def inputs_of_batches(self, count: int, *, epoch: int | None = None) -> list[Inputs] | None:
        """The network's inputs for the first ``count`` training batches, the same ones on every process.

        ``None`` if there are no batches.
        """
        batches = self.batches(count, epoch=epoch)
        found = [network_inputs(self.pl_module, batch, index) for index, batch in enumerate(batches)]
        return self.trainer.strategy.broadcast(found) if found else None

    def remember_dense(self, metrics: dict[str, float]) -> None:
        """Store the network and its ``metrics`` as the dense reference, unless one is stored already."""
        record = self.record
        if record.dense is None:
            record.dense = Snapshot.take(self.network, metrics)

    def refresh_ddp(self) -> None:
        """Register the new parameters with DDP's gradient reduction and drop code compiled for the old ones."""
        torch.compiler.reset()
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and self.pl_module.device.type == strategy.root_device.type:
            strategy.model = self.pl_module  # not at the end, when the module has left its device
            strategy.configure_ddp()

    def validate(self) -> None:
        """Validate within ``fit``, as after an epoch, so that metrics, loggers and callbacks see the new network."""
        trainer = self.trainer
        if not trainer.enable_validation:
            return
        module, stage = trainer.lightning_module, trainer.state.stage
        device = module.device
        trainer.validating = True
        try:
            module.to(trainer.strategy.root_device)  # a run resumed after its last epoch has moved it off the device
            trainer.fit_loop.epoch_loop.val_loop.run()
        finally:
            module.to(device)
            trainer.state.stage = stage
