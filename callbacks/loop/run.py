"""CompressionRun: the training that a callback works in, and what a rewrite needs of it."""

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
    """A training as a callback sees it; each hook of Lightning makes one and passes it on.

    Attributes:
        trainer: Lightning's trainer.
        pl_module: the LightningModule that it trains.
        example: the network's inputs for the first batch of the epoch, the same on every process; ``None`` before it.
    """

    trainer: lightning.Trainer
    pl_module: lightning.LightningModule
    example: Inputs | None = None

    @property
    def network(self) -> nn.Module:
        """The network inside the module that is compressed."""
        return network_of(self.pl_module)

    @property
    def record(self) -> CompressionRecord:
        """What has been done to the network, which checkpoints hold."""
        return record_of(self.pl_module)

    @property
    def dense(self) -> Snapshot | None:
        """The network before its first rewrite; ``None`` where none has come."""
        return self.record.dense

    @property
    def inputs(self) -> Inputs:
        """The example, where there must be one."""
        assert self.example is not None, "a rewrite needs inputs: at least one training batch"
        return self.example

    @property
    def optimizers(self) -> list[Optimizer]:
        """The trainer's optimizers, which rewrites rebind."""
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
        """Where training is: "epoch 3 of 14", or "epoch 3" where steps or time alone end it."""
        epochs = self.trainer.max_epochs
        return f"epoch {self.epoch}" + (f" of {epochs}" if epochs is not None and epochs >= 0 else "")

    @property
    def fitting(self) -> bool:
        """Whether this is ``fit``, past its sanity check."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    @property
    def fast_dev_run(self) -> bool:
        """Whether the trainer only tries a few batches, so that schedules need not fit in."""
        return bool(getattr(self.trainer, "fast_dev_run", False))

    @property
    def learning_rate(self) -> float:
        """The rate at which the first parameter of the network that an optimizer trains is trained now."""
        own = {id(parameter) for parameter in self.network.parameters()}
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return next((float(g["lr"]) for g in groups if any(id(parameter) in own for parameter in g["params"])), 0.0)

    def metric(self, name: str) -> float | None:
        """The last logged value of the metric ``name``, the same on every process; ``None`` where there is none."""
        found = self.trainer.callback_metrics.get(name)
        return None if found is None else self.trainer.strategy.broadcast(float(found))

    def look(self, batch: Any, batch_idx: int) -> Inputs:
        """Make the network's inputs for ``batch`` the example, the same on every process, so that all decide alike."""
        self.example = global_inputs(self.trainer, network_inputs(self.pl_module, batch, batch_idx))
        return self.example

    def batches(self, count: int, *, epoch: int | None = None) -> list[Any]:
        """The first ``count`` training batches; ``epoch`` is told to the samplers where given."""
        return training_batches(self.trainer, self.pl_module, count, epoch=epoch)

    def inputs_of_batches(self, count: int, *, epoch: int | None = None) -> list[Inputs] | None:
        """The network's inputs for the first ``count`` training batches, the same ones on every process.

        ``None`` where there are no batches.
        """
        batches = self.batches(count, epoch=epoch)
        found = [network_inputs(self.pl_module, batch, index) for index, batch in enumerate(batches)]
        return self.trainer.strategy.broadcast(found) if found else None

    def remember_dense(self, metrics: dict[str, float]) -> None:
        """Keep the network, and the ``metrics`` measured on it, as the dense one, unless a rewrite has come before."""
        record = self.record
        if record.dense is None:
            record.dense = Snapshot.take(self.network, metrics)

    def refresh_ddp(self) -> None:
        """Let DDP's gradient reduction know the new parameters, and drop compiled code of the old ones."""
        torch.compiler.reset()
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and self.pl_module.device.type == strategy.root_device.type:
            strategy.model = self.pl_module  # not once the module has left its device, at the end
            strategy.configure_ddp()

    def validate(self) -> None:
        """Validate within ``fit``, as after an epoch: metrics, loggers and callbacks see the network as it is now."""
        trainer = self.trainer
        if not trainer.enable_validation:
            return
        module, stage = trainer.lightning_module, trainer.state.stage
        device = module.device
        trainer.validating = True
        try:
            module.to(trainer.strategy.root_device)  # it has left it where a run was resumed after its last epoch
            trainer.fit_loop.epoch_loop.val_loop.run()
        finally:
            module.to(device)
            trainer.state.stage = stage
