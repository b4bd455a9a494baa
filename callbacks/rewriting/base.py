"""What every callback that rewrites a network shares."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_fold.callbacks.loop.batches import training_batches
from lightning_fold.callbacks.loop.compatibility import refuse_strategy, refuse_training, refuse_unused
from lightning_fold.callbacks.loop.copies import Copies
from lightning_fold.callbacks.loop.inputs import global_inputs, network_inputs
from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport
from lightning_fold.storage.checkpoints import CompressionRecord, Snapshot, network_of, record_of
from lightning_fold.structure.groups import channel_groups

Rewrite = Callable[[nn.Module, Inputs, Iterable[Optimizer]], RewriteReport]


class RewriteCallback(lightning.Callback):
    """Base of the callbacks that rewrite a network in training: finds it, rewrites it, rebinds optimizers and DDP.

    Args:
        module: dotted path of the network inside the LightningModule; empty finds it (``network``, ``model``, ``net``,
            ``backbone``, or the only submodule with parameters).
        monitor: name of a logged validation metric, higher is better.

    Attributes:
        report: what the last rewrite of this process did; ``None`` before it, and once it was taken back.
        ended: whether training has ended, so that nothing more is to come.
    """

    def __init__(self, module: str = "", monitor: str = "accuracy/val") -> None:
        self.module = module
        self.monitor = monitor
        self.metric: float | None = None
        self.report: RewriteReport | None = None
        self.ended = False
        self._example: Inputs | None = None
        self._epoch = self._start = -1
        self._missed = False  # whether a validation logged no such metric
        self._unseen = False  # whether no validation has followed the last change of the network
        self._copies = Copies(type(self).__name__)

    @property
    def state_key(self) -> str:
        """Where checkpoints keep the state: callbacks of one class may work on one network at different epochs."""
        return self._generate_state_key(module=self.module, at_epoch=getattr(self, "at_epoch", None))

    @property
    def finished(self) -> bool:
        """Whether the network has the shapes it ends with."""
        raise NotImplementedError

    @property
    def reserved_epochs(self) -> range:
        """The epochs in which no other callback may rewrite the network, because this one is in the middle of it."""
        return range(0)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse strategies that keep their own copy of the parameters; let checkpoints hold the structure."""
        self._example, self._epoch = None, -1
        if stage == "fit":
            refuse_strategy(type(self).__name__, trainer)
        record_of(pl_module, self.module)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse what else cannot follow a change of shapes."""
        self._copies, self._start, self.ended = Copies(type(self).__name__), trainer.global_step, False
        if not self.finished:
            self._copies.check(trainer, pl_module)
        refuse_training(type(self).__name__, trainer, pl_module)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch of an epoch: see what the network's inputs are, do what the schedule says.

        Not in ``on_train_epoch_start``, which Lightning leaves out after some restarts.
        """
        begins, stepped = trainer.current_epoch != self._epoch, trainer.global_step > self._start
        if (begins or stepped) and not self.finished:
            self._copies.check(trainer, pl_module)
        if stepped:  # averages show after the first step, or else at the start of an epoch
            self._start = sys.maxsize
        if begins:
            self._epoch = trainer.current_epoch
            with torch.compiler.set_stance("force_eager"):
                self._look(trainer, pl_module, batch, batch_idx)
                self.begin_epoch(trainer, pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the validation metric for decisions at the start of the next epoch; tell ``ModelCheckpoint``.

        ``compressed/accuracy`` among the trainer's metrics is the validation metric once the network has its final
        shapes and NaN before, which ``ModelCheckpoint`` takes for the worst value.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._unseen = False
        if self.monitor not in trainer.callback_metrics:
            self._miss(trainer)
            return
        self.metric = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        shown = self.metric if is_compressed(trainer, pl_module) else torch.nan
        trainer.callback_metrics["compressed/accuracy"] = torch.tensor(shown)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Do what remains to be done, and validate what comes of it."""
        if self._example is not None:
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Do what remains to be done where a run was resumed after its last epoch: Lightning calls no other hook."""
        if self._example is not None or trainer.interrupted:
            return
        for batch in training_batches(trainer, pl_module, 1):
            self._look(trainer, pl_module, batch, 0)
            self._finish(trainer, pl_module)

    def begin_epoch(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What happens before the first batch of each epoch."""

    def finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What happens once, after the last epoch."""

    def unfinished(self, epochs: int) -> str:
        """What to say where training ended, after so many epochs, before this callback had done its work."""
        raise NotImplementedError

    def dry_run(self, network: nn.Module, inputs: Inputs) -> None:
        """See, before anything is trained, that what is to come can be done; ``network`` stays as it is."""
        channel_groups(network, inputs)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"metric": self.metric, "unseen": self._unseen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an interrupted run."""
        self.metric = state_dict["metric"]
        self._unseen = state_dict.get("unseen", False)

    def rewrite(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, method: str, change: Rewrite
    ) -> RewriteReport:
        """Apply ``change`` to the network with the trainer's optimizers, and record it.

        The network as it is before the first rewrite of a run is kept as the dense one.
        """
        assert self._example is not None, "a rewrite needs inputs: at least one training batch"
        network = network_of(pl_module)
        self._copies.warn(trainer, pl_module)
        remember_dense(pl_module, self.metric, self.monitor)
        report = self.report = change(network, self._example, trainer.optimizers)
        self._unseen = True
        self._tell(trainer, report)
        record: CompressionRecord = record_of(pl_module)
        record.methods.append({"method": method, "epoch": trainer.current_epoch, "parameters": report.parameters_after})
        refresh_ddp(trainer, pl_module)
        return report

    def _miss(self, trainer: lightning.Trainer) -> None:
        if not self._missed:
            rank_zero_warn(
                f"{type(self).__name__}(monitor={self.monitor!r}): found no such metric after a validation, so nothing "
                "is said of the accuracy, dense or compressed. Expected the name of a logged one: "
                f"{', '.join(map(repr, sorted(trainer.callback_metrics))) or 'none is logged'}."
            )
        self._missed = True

    def _tell(self, trainer: lightning.Trainer, report: RewriteReport) -> None:
        """Name the size in the terminal, and what the user should know of how it came about."""
        epoch = place_in(trainer)
        rank_zero_info(f"{type(self).__name__}, {epoch}: {report.summary}")
        for note in report.notes:
            rank_zero_warn(f"{type(self).__name__}, {epoch}: {note}")

    def _finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.finish(trainer, pl_module)
        self.ended = not trainer.interrupted
        if self.ended and not self.finished and not trainer.fast_dev_run:
            rank_zero_warn(self.unfinished(trainer.current_epoch))
        if is_settled(trainer) and any(callback._unseen for callback in rewriting(trainer)):
            validate(trainer)

    def _look(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the network's inputs for a batch, the same on every process, so that all processes decide alike."""
        first = self._example is None
        self._example = global_inputs(trainer, network_inputs(pl_module, batch, batch_idx))
        if first:  # a network that cannot be read fails now, not days later
            refuse_unused(type(self).__name__, pl_module, self._example)
            self.dry_run(network_of(pl_module), self._example)


def remember_dense(pl_module: lightning.LightningModule, metric: float | None, monitor: str) -> None:
    """Keep the network as the dense one, where no rewrite has come before."""
    record = record_of(pl_module)
    if record.dense is None:
        record.dense = Snapshot.take(network_of(pl_module), {} if metric is None else {monitor: metric})


def is_compressed(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> bool:
    """Whether the network was rewritten and every callback that rewrites it has done so for the last time."""
    return bool(record_of(pl_module).methods) and is_settled(trainer)


def is_settled(trainer: lightning.Trainer) -> bool:
    """Whether no callback will change the network any more."""
    return all(callback.finished or callback.ended for callback in rewriting(trainer))


def rewriting(trainer: lightning.Trainer) -> list[RewriteCallback]:
    """The callbacks that rewrite networks."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [callback for callback in callbacks if isinstance(callback, RewriteCallback)]


def place_in(trainer: lightning.Trainer) -> str:
    """Where training is; of how many epochs it has is known where no number of steps or time alone ends it."""
    known = trainer.max_epochs is not None and trainer.max_epochs >= 0
    return f"epoch {trainer.current_epoch}" + (f" of {trainer.max_epochs}" if known else "")


def refresh_ddp(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
    """Let DDP's gradient reduction know the new parameters, and drop compiled code of the old ones."""
    torch.compiler.reset()
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and pl_module.device.type == strategy.root_device.type:
        strategy.model = pl_module  # not once the module has left its device, at the end
        strategy.configure_ddp()


def validate(trainer: lightning.Trainer) -> None:
    """Validate within ``fit``, as after an epoch: metrics, loggers and callbacks get what the network is worth now."""
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


def learning_rate(trainer: lightning.Trainer, network: nn.Module) -> float:
    """The rate at which the first parameter of ``network`` that an optimizer trains is trained now."""
    own = {id(parameter) for parameter in network.parameters()}
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return next((float(g["lr"]) for g in groups if any(id(parameter) in own for parameter in g["params"])), 0.0)
