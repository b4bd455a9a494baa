"""RewriteCallback: the base of every callback that rewrites a network in training."""

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
    """Base of the callbacks that rewrite a network in training: finds it, rewrites it, rebinds optimizers and DDP.

    For a rewrite at one moment use :class:`RewriteOnce`; this class is for a schedule of your own. Override

    - ``finished`` and ``unfinished``: whether all is done, and the warning where training ends before it is;
    - ``begin_epoch(run)``, called before the first batch of each epoch, and ``finish(run)``, called once at the end:
      both call ``self.rewrite(run, name, change)`` when it is time;
    - ``state_dict`` and ``load_state_dict`` (extend those here) for what a resumed run needs to know;
    - ``dry_run``, if the rewrite may fail: it runs before training starts. ``reserved_epochs``, if no other callback
      may rewrite the network in between.

    They get a :class:`CompressionRun`: ``run.network``, ``run.inputs``, ``run.optimizers``, ``run.record``,
    ``run.epoch``, and ``run.trainer`` and ``run.pl_module`` for the rest. ``change(network, inputs, optimizers)``
    rewrites in place and returns a ``RewriteReport``, as ``lightning_fold.prune`` and the like do. The base class
    refuses what cannot follow a change of shapes, keeps the dense network and the list of rewrites for checkpoints,
    prints the size, and validates after a rewrite at the end. A hook of Lightning that you override calls ``super()``.

    Args:
        module: dotted path of the network inside the LightningModule; empty finds it (``network``, ``model``, ``net``,
            ``backbone``, or the only submodule with parameters).
        monitor: name of a logged validation metric, higher is better.

    Attributes:
        metric: the last validation's value of ``monitor``; ``None`` where there is none.
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
    @abstractmethod
    def finished(self) -> bool:
        """Whether the network has its final shapes."""

    @abstractmethod
    def unfinished(self, epochs: int) -> str:
        """The warning where training ended, after so many epochs, before this callback had done its work."""

    @property
    def reserved_epochs(self) -> range:
        """The epochs in which no other callback may rewrite the network, because this one is in the middle of it."""
        return range(0)

    @property
    def metrics(self) -> dict[str, float]:
        """The monitored metric by its name; empty where there is none."""
        return {} if self.metric is None else {self.monitor: self.metric}

    def begin_epoch(self, run: CompressionRun) -> None:
        """What happens before the first batch of each epoch."""

    def finish(self, run: CompressionRun) -> None:
        """What happens once, after the last epoch."""

    def dry_run(self, network: nn.Module, inputs: Inputs) -> None:
        """Check, before any training, that the rewrite will work; ``network`` must not change."""
        channel_groups(network, inputs)

    def rewrite(self, run: CompressionRun, method: str, change: Rewrite) -> RewriteReport:
        """Apply ``change`` to the network with the trainer's optimizers, and record it as ``method``.

        The network as it is before the first rewrite of a run is kept as the dense one.
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
        """Give the network the structure and weights of ``earlier``, when ``methods`` rewrites had been done."""
        rebuild(run.network, earlier.structure, optimizers=run.optimizers)
        run.network.load_state_dict(earlier.state_dict)
        self.metric, self.report, self._unseen = earlier.metrics.get(self.monitor), None, True
        del run.record.methods[methods:]
        run.refresh_ddp()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"metric": self.metric, "unseen": self._unseen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an interrupted run."""
        self.metric = state_dict["metric"]
        self._unseen = state_dict.get("unseen", False)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse strategies that keep their own copy of the parameters; let checkpoints hold the structure."""
        self._example, self._epoch = None, -1
        if stage == "fit":
            refuse_strategy(type(self).__name__, trainer)
        record_of(pl_module, self.module)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse what else cannot follow a change of shapes."""
        run = self.run_of(trainer, pl_module)
        self._copies, self._start, self.ended = Copies(type(self).__name__), trainer.global_step, False
        if not self.finished:
            self._copies.check(run)
        refuse_training(type(self).__name__, run)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch of an epoch: see what the network's inputs are, do what the schedule says.

        Not in ``on_train_epoch_start``, which Lightning leaves out after some restarts.
        """
        run = self.run_of(trainer, pl_module)
        begins, stepped = run.epoch != self._epoch, trainer.global_step > self._start
        if (begins or stepped) and not self.finished:
            self._copies.check(run)
        if stepped:  # averages show after the first step, or else at the start of an epoch
            self._start = sys.maxsize
        if begins:
            self._epoch = run.epoch
            with torch.compiler.set_stance("force_eager"):
                self._look(run, batch, batch_idx)
                self.begin_epoch(run)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the validation metric for decisions at the start of the next epoch; tell ``ModelCheckpoint``.

        ``compressed/accuracy`` among the trainer's metrics is the validation metric once the network has its final
        shapes and NaN before, which ``ModelCheckpoint`` takes for the worst value.
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
        """Do what remains to be done, and validate what comes of it."""
        if self._example is not None:
            self._finish(self.run_of(trainer, pl_module))

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Do what remains to be done where a run was resumed after its last epoch: Lightning calls no other hook."""
        if self._example is not None or trainer.interrupted:
            return
        run = self.run_of(trainer, pl_module)
        for batch in run.batches(1):
            self._look(run, batch, 0)
            self._finish(run)

    def run_of(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> CompressionRun:
        """The run as this callback sees it, for a hook of Lightning."""
        return CompressionRun(trainer, pl_module, self._example)

    def _miss(self, run: CompressionRun) -> None:
        if not self._missed:
            logged = sorted(run.trainer.callback_metrics)
            rank_zero_warn(
                f"{type(self).__name__}(monitor={self.monitor!r}): found no such metric after a validation, so nothing "
                "is said of the accuracy, dense or compressed. Expected the name of a logged one: "
                f"{', '.join(map(repr, logged)) or 'none is logged'}."
            )
        self._missed = True

    def _tell(self, run: CompressionRun, report: RewriteReport) -> None:
        """Name the size in the terminal, and what the user should know of how it came about."""
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
        """Keep the network's inputs for a batch; a network that cannot be read fails on the first, not days later."""
        first = self._example is None
        self._example = run.look(batch, batch_idx)
        if first:
            refuse_unused(type(self).__name__, run)
            self.dry_run(run.network, run.inputs)


def rewriting(run: CompressionRun) -> list[RewriteCallback]:
    """The callbacks of the run that rewrite networks."""
    return [callback for callback in run.callbacks if isinstance(callback, RewriteCallback)]


def is_settled(run: CompressionRun) -> bool:
    """Whether no callback will change the network any more."""
    return all(callback.finished or callback.ended for callback in rewriting(run))


def is_compressed(run: CompressionRun) -> bool:
    """Whether the network was rewritten and every callback that rewrites it has done so for the last time."""
    return bool(run.record.methods) and is_settled(run)
