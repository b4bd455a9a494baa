"""RewriteCallback: the base of every callback that rewrites a network during training."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_fold.callbacks.loop.compatibility import refuse_strategy, refuse_training, refuse_unused
from lightning_fold.callbacks.loop.copies import Copies
from lightning_fold.callbacks.loop.run import CompressionRun
from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport
from lightning_fold.storage.checkpoints import Snapshot, record_of
from lightning_fold.storage.rebuild import rebuild
from lightning_fold.structure.groups import channel_groups

Rewrite = Callable[[nn.Module, Inputs, Iterable[Optimizer]], RewriteReport]


class RewriteCallback(lightning.Callback, ABC):
    """Finds the network, rewrites it during training and updates optimizers and DDP: the base of all such callbacks.

    For a single rewrite use :class:`RewriteOnce`; subclass this class for a schedule of your own. Override

    - ``finished`` and ``unfinished``: whether all rewrites are done, and the warning if training ends before that;
    - ``begin_epoch(run)``, called before the first batch of each epoch, and ``finish(run)``, called once at the end:
      call ``self.rewrite(run, name, change)`` there when a rewrite is due;
    - ``state_dict`` and ``load_state_dict`` (extend the base versions) to store the state that a resumed run needs;
    - ``dry_run`` if the rewrite may fail: it runs before training starts;
    - ``reserved_epochs`` if no other callback may rewrite the network in between.

    The hooks get a :class:`CompressionRun` with ``run.network``, ``run.inputs``, ``run.optimizers``, ``run.record``,
    ``run.epoch``, ``run.trainer`` and ``run.pl_module``. ``change(network, inputs, optimizers)`` rewrites in place and
    returns a ``RewriteReport``, as ``lightning_fold.prune`` does. The base class refuses setups that cannot follow a
    change of shapes, stores the dense network and the list of rewrites in checkpoints, prints the size, and validates
    after a rewrite at the end. If you override a Lightning hook, call ``super()``.

    Args:
        module: dotted path of the network inside the LightningModule; empty finds it (``network``, ``model``, ``net``,
            ``backbone``, or the only submodule with parameters).
        monitor: name of a logged validation metric, higher is better.

    Attributes:
        metric: the value of ``monitor`` in the last validation; ``None`` if there is none.
        report: the report of the last rewrite in this process; ``None`` before the first and after a rollback.
        ended: whether training has ended, so that no more rewrites follow.
    """

    def __init__(self, module: str = "", monitor: str = "accuracy/val") -> None:
        self.module = module
        self.monitor = monitor
        self.metric: float | None = None
        self.report: RewriteReport | None = None
        self.ended = False
        self._example: Inputs | None = None
        self._epoch = self._start = -1
        self._missed = False  # whether a validation did not log the metric
        self._unseen = False  # changed since the last validation
        self._copies = Copies(type(self).__name__)

    @property
    def state_key(self) -> str:
        """The state's key in checkpoints: callbacks of one class may rewrite one network at different epochs."""
        return self._generate_state_key(module=self.module, at_epoch=getattr(self, "at_epoch", None))

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the network has its final shapes."""

    @abstractmethod
    def unfinished(self, epochs: int) -> str:
        """The warning for a training that ended after ``epochs`` epochs, before this callback had done its work."""

    @property
    def reserved_epochs(self) -> range:
        """The epochs in which no other callback may rewrite the network, because this one is still at work."""
        return range(0)

    @property
    def metrics(self) -> dict[str, float]:
        """The monitored metric by its name; empty if there is none."""
        return {} if self.metric is None else {self.monitor: self.metric}

    def begin_epoch(self, run: CompressionRun) -> None:
        """Called before the first batch of each epoch."""

    def finish(self, run: CompressionRun) -> None:
        """Called once, after the last epoch."""

    def dry_run(self, network: nn.Module, inputs: Inputs) -> None:
        """Check, before any training, that the rewrite will work; ``network`` must not change."""
        channel_groups(network, inputs)

    def rewrite(self, run: CompressionRun, method: str, change: Rewrite) -> RewriteReport:
        """Apply ``change`` to the network with the trainer's optimizers, and record it as ``method``.

        The network before the first rewrite of a run is stored as the dense reference.
        """
        inputs = run.inputs
        self._copies.warn(run)
        run.remember_dense(self.metrics)
        report = self.report = change(run.network, inputs, run.optimizers)
        self._unseen = True
        self._tell(run, report)
        run.record.methods.append({"method": method, "epoch": run.epoch, "parameters": report.parameters_after})
        run.refresh_ddp()
        return report

    def take_back(self, run: CompressionRun, earlier: Snapshot, methods: int) -> None:
        """Roll the network back to the structure and weights of ``earlier``, after its first ``methods`` rewrites."""
        rebuild(run.network, earlier.structure, optimizers=run.optimizers)
        run.network.load_state_dict(earlier.state_dict)
        self.metric, self.report, self._unseen = earlier.metrics.get(self.monitor), None, True
        del run.record.methods[methods:]
        run.refresh_ddp()

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs."""
        return {"metric": self.metric, "unseen": self._unseen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of an interrupted run."""
        self.metric = state_dict["metric"]
        self._unseen = state_dict.get("unseen", False)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse strategies that keep their own copy of the parameters; make checkpoints store the structure."""
        self._example, self._epoch = None, -1
        if stage == "fit":
            refuse_strategy(type(self).__name__, trainer)
        record_of(pl_module, self.module)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse optimizers, training steps and copies that cannot follow a change of shapes."""
        run = self.run_of(trainer, pl_module)
        self._copies, self._start, self.ended = Copies(type(self).__name__), trainer.global_step, False
        if not self.finished:
            self._copies.check(run)
        refuse_training(type(self).__name__, run)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch of an epoch, find the network's inputs and follow the schedule.

        ``on_train_epoch_start`` would not do: Lightning skips it after some restarts.
        """
        run = self.run_of(trainer, pl_module)
        begins, stepped = run.epoch != self._epoch, trainer.global_step > self._start
        if (begins or stepped) and not self.finished:
            self._copies.check(run)
        if stepped:  # averages appear after the first step, or at the start of an epoch
            self._start = sys.maxsize
        if begins:
            self._epoch = run.epoch
            with torch.compiler.set_stance("force_eager"):
                self._look(run, batch, batch_idx)
                self.begin_epoch(run)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Store the validation metric for decisions at the start of the next epoch, and pass it to ``ModelCheckpoint``.

        The trainer's metric ``compressed/accuracy`` is NaN, which ``ModelCheckpoint`` treats as the worst value, until
        the network has its final shapes; from then on it is the validation metric.
        """
        run = self.run_of(trainer, pl_module)
        if not run.fitting:
            return
        self._unseen = False
        metric = run.metric(self.monitor)
        if metric is None:
            self._miss(run)
            return
        self.metric = metric
        shown = metric if is_compressed(run) else torch.nan
        trainer.callback_metrics["compressed/accuracy"] = torch.tensor(shown)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Do the remaining rewrites and validate the result."""
        if self._example is not None:
            self._finish(self.run_of(trainer, pl_module))

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Do the remaining rewrites of a run resumed after its last epoch: Lightning calls only this hook."""
        if self._example is not None or trainer.interrupted:
            return
        run = self.run_of(trainer, pl_module)
        for batch in run.batches(1):
            self._look(run, batch, 0)
            self._finish(run)

    def run_of(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> CompressionRun:
        """The run as this callback sees it, for use in Lightning hooks."""
        return CompressionRun(trainer, pl_module, self._example)

    def _miss(self, run: CompressionRun) -> None:
        """Warn once, also where several callbacks look for the same metric."""
        sharing = [callback for callback in rewriting(run) if callback.monitor == self.monitor]
        if not any(callback._missed for callback in sharing):
            logged = sorted(run.trainer.callback_metrics)
            names = ", ".join(dict.fromkeys(type(callback).__name__ for callback in sharing))
            rank_zero_warn(
                f"{names}(monitor={self.monitor!r}): found no such metric after a validation, so "
                "dense and compressed accuracy are not reported. Expected the name of a logged metric: "
                f"{', '.join(map(repr, logged)) or 'none is logged'}."
            )
        self._missed = True

    def _tell(self, run: CompressionRun, report: RewriteReport) -> None:
        """Print the new size and the report's notes."""
        rank_zero_info(f"{type(self).__name__}, {run.place}: {report.summary}")
        for note in report.notes:
            rank_zero_warn(f"{type(self).__name__}, {run.place}: {note}")

    def _finish(self, run: CompressionRun) -> None:
        self.finish(run)
        self.ended = not run.trainer.interrupted
        if self.ended and not self.finished and not run.fast_dev_run:
            rank_zero_warn(self.unfinished(run.epoch))
        if is_settled(run) and any(callback._unseen for callback in rewriting(run)):
            run.validate()

    def _look(self, run: CompressionRun, batch: Any, batch_idx: int) -> None:
        """Store the network's inputs for a batch; on the first batch, check that the network can be rewritten."""
        first = self._example is None
        self._example = run.look(batch, batch_idx)
        if first:
            refuse_unused(type(self).__name__, run)
            self.dry_run(run.network, run.inputs)


def rewriting(run: CompressionRun) -> list[RewriteCallback]:
    """The run's callbacks that rewrite networks."""
    return [callback for callback in run.callbacks if isinstance(callback, RewriteCallback)]


def is_settled(run: CompressionRun) -> bool:
    """Whether the network is final: no callback will change it again."""
    return all(callback.finished or callback.ended for callback in rewriting(run))


def is_compressed(run: CompressionRun) -> bool:
    """Whether the network was rewritten and no callback will rewrite it again."""
    return bool(run.record.methods) and is_settled(run)
