"""Squeeze-Release: cycles of prune, minimize and release between the epochs of a training."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_fold.arguments import as_list, check_choice, check_share
from lightning_fold.callbacks.rewriting.base import (
    RewriteCallback,
    learning_rate,
    place_in,
    refresh_ddp,
    remember_dense,
)
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.regularizers import GroupSparsity
from lightning_fold.report import RewriteReport, counted
from lightning_fold.rewrites.exact.minimize import minimize
from lightning_fold.rewrites.sparsity.release import release
from lightning_fold.rewrites.sparsity.sparsify import Criterion, prunable_weights, sparsify
from lightning_fold.rewrites.sparsity.sparsity_for_target import sparsity_within
from lightning_fold.storage.checkpoints import Snapshot, network_of, record_of
from lightning_fold.storage.rebuild import rebuild
from lightning_fold.structure.groups import channel_groups

Phase = Literal["dense", "shrink", "masked", "final"]


class SqueezeRelease(RewriteCallback):
    """Shrinks a network in cycles while it trains; the function changes only where weights are pruned.

    After ``dense_epochs`` of plain training each cycle trains with a group penalty, sets weights to zero (prune),
    trains on with those held at zero, rewrites the network into a smaller dense one of the same function (minimize)
    and, if another cycle follows, lets the zeros left over come back as small noise (release). The epochs after the
    last cycle train the small network. Rewrites happen before the first batch of an epoch; optimizer moments of what
    survives and the learning-rate schedule go on. Checkpoints hold the structure, and a run resumed from one ends as
    the unbroken run.

    Suggested: a dense network trained to its end, a sparsity that falls from 0.5 to 0.1 over the cycles, several short
    cycles rather than few long ones, a target factor, final epochs with a falling learning rate. A cycle is worth
    little unless whole channels become empty, so the criterion "connected" beats "magnitude" by far. It does not help a
    network that is already as narrow as its task allows. Where most of what is left stands in one wide layer, stop the
    cycles earlier and let LowRankFactorization split it before the final epochs. In training mode a BatchNorm
    normalises with batch statistics, so channels that are constant in evaluation mode change slightly there.

    Source: "Squeeze-Release: Iterative Pruning with Exact Structural Minimization" (arXiv 2606.14346).

    Args:
        dense_epochs: epochs before the first cycle, at least 1; the network at their end is the dense reference.
        cycles: number of cycles, at least 1.
        shrink_epochs: epochs of each cycle before pruning, at least 0.
        masked_epochs: epochs of each cycle after pruning, with pruned weights held at zero, at least 1.
        sparsity: share of weights at zero after pruning, in [0, 1), for each cycle; the last one repeats.
        criterion: which weights go first: "magnitude", or "connected", by the weaker of the two channels that a weight
            connects, so that whole channels empty.
        group_penalty: strength of the group penalty in the cycles, at least 0, for each cycle; the last one repeats.
            After each optimizer step every channel's norm loses this times the learning rate.
        max_drift: how far the outputs on one batch may move when zeros come back, as a share in [0, 1).
        target_factor: compression factor at which the cycles stop, at least 1; the last pruning goes just that far.
        select_inputs: also prune input features and drop those the first Linear layer no longer reads, behind a
            selection layer.
        max_accuracy_drop: largest drop of the monitored metric below the dense network that a cycle may end with. More
            ends the cycles and brings the last good network back.
        seed: seed of the noise.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of the logged validation metric that the limit watches, higher is better.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        dense_epochs: int = 10,
        cycles: int = 5,
        shrink_epochs: int = 1,
        masked_epochs: int = 1,
        sparsity: list[float] = [0.9],  # noqa: B006  read only
        criterion: Criterion = "connected",
        group_penalty: list[float] = [0.0],  # noqa: B006  read only
        max_drift: float = 0.01,
        target_factor: float = 1000.0,
        select_inputs: bool = False,
        max_accuracy_drop: float = 1.0,
        seed: int = 0,
        module: str = "",
        monitor: str = "accuracy/val",
    ) -> None:
        super().__init__(module, monitor)
        self.dense_epochs, self.cycles = dense_epochs, cycles
        self.shrink_epochs, self.masked_epochs = shrink_epochs, masked_epochs
        self.sparsity = as_list("SqueezeRelease", "sparsity", sparsity)
        self.group_penalty = as_list("SqueezeRelease", "group_penalty", group_penalty)
        self.criterion: Criterion = criterion
        self.max_drift, self.select_inputs = max_drift, select_inputs
        self.target_factor = target_factor
        self.max_accuracy_drop, self.seed = max_accuracy_drop, seed
        self._check()
        self.masks: dict[str, torch.Tensor] = {}
        self.last_good: Snapshot | None = None
        self.last_good_methods = 0
        self.stopped = False
        self.cycles_done = 0
        self._penalty: GroupSparsity | None = None
        self._steps = -1

    @property
    def cycle_epochs(self) -> int:
        """Epochs of one cycle."""
        return self.shrink_epochs + self.masked_epochs

    @property
    def last_epoch(self) -> int:
        """The first epoch after the last cycle."""
        return self.dense_epochs + self.cycles * self.cycle_epochs

    @property
    def reserved_epochs(self) -> range:
        """The epochs of the cycles: their masks and penalties belong to the network that they began with."""
        return range(self.dense_epochs, self.last_epoch)

    @property
    def finished(self) -> bool:
        """Whether the last cycle has ended."""
        return self.stopped or self.cycles_done >= self.cycles

    def phase(self, epoch: int) -> Phase:
        """The phase that ``epoch`` belongs to, counted from 0."""
        if epoch < self.dense_epochs:
            return "dense"
        if self.stopped or epoch >= self.last_epoch:
            return "final"
        return "shrink" if (epoch - self.dense_epochs) % self.cycle_epochs < self.shrink_epochs else "masked"

    def cycle(self, epoch: int) -> int:
        """The cycle that ``epoch`` belongs to, counted from 0."""
        return (epoch - self.dense_epochs) // self.cycle_epochs

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Check that the cycles fit into the training."""
        super().setup(trainer, pl_module, stage)
        epochs = trainer.max_epochs or 0
        if stage == "fit" and 0 <= epochs < self.last_epoch and not trainer.fast_dev_run:
            raise ArgumentError(
                f"SqueezeRelease(dense_epochs={self.dense_epochs}, cycles={self.cycles}, shrink_epochs="
                f"{self.shrink_epochs}, masked_epochs={self.masked_epochs}): needs {self.last_epoch} epochs, found "
                f"Trainer(max_epochs={epochs}). Set max_epochs={self.last_epoch} or more, or take fewer cycles."
            )
        if self.max_accuracy_drop < 1 and stage == "fit" and not trainer.fast_dev_run:
            self._check_validation(trainer)
        network = network_of(pl_module)
        if not prunable_weights(network):
            raise ArgumentError(
                f"SqueezeRelease: {type(network).__name__} has no Linear or convolution weight; expected a network "
                "with layers that can be pruned."
            )

    def _check_validation(self, trainer: lightning.Trainer) -> None:
        """The limit is on what a validation after the last epoch of each cycle finds."""
        settings = {name: getattr(trainer, name) for name in ("check_val_every_n_epoch", "limit_val_batches")}
        if settings["check_val_every_n_epoch"] != 1 or settings["limit_val_batches"] == 0:
            written = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise ArgumentError(
                f"SqueezeRelease(max_accuracy_drop={self.max_accuracy_drop}): expected a validation after every epoch, "
                f"found Trainer({written}). Set check_val_every_n_epoch=1 and limit_val_batches above 0, or "
                "max_accuracy_drop=1 for no limit."
            )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the validation metric; say so at once if the limit has none to watch."""
        super().on_validation_end(trainer, pl_module)
        trained = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.max_accuracy_drop < 1 and trained and self.monitor not in trainer.callback_metrics:
            raise self._no_metric()

    def begin_epoch(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Before an epoch's first batch: minimize and release at a cycle's end, prune in its middle."""
        epoch, self._steps = trainer.current_epoch, trainer.global_step
        done = min(max(epoch - self.dense_epochs, 0) // self.cycle_epochs, self.cycles)
        if self.cycles_done < done and not self.stopped:
            self._end_cycle(trainer, pl_module)
        self.masks = {name: mask.to(pl_module.device) for name, mask in self.masks.items()}
        phase = self.phase(epoch)
        if phase != "dense":
            remember_dense(pl_module, self.metric, self.monitor)
        if phase == "masked" and not self.masks:
            self._prune(trainer, pl_module, self.cycle(epoch))
        wanted = phase in ("shrink", "masked") and _at(self.group_penalty, self.cycle(epoch)) > 0
        self._penalty = self._group_sparsity(pl_module) if wanted else None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: shrink the channels, hold pruned weights at zero."""
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        if self._penalty is not None and stepped:
            rate = learning_rate(trainer, network_of(pl_module))
            self._penalty.shrink(rate * _at(self.group_penalty, self.cycle(trainer.current_epoch)))
        if self.masks:
            parameters = dict(network_of(pl_module).named_parameters())
            with torch.no_grad():
                for name, mask in self.masks.items():
                    parameters[name].mul_(mask)

    def finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Minimize what is still masked; if the final network is worse than allowed, bring the last good one back."""
        if self.masks:
            self._end_cycle(trainer, pl_module, last=True)
        elif self._too_bad(pl_module):
            self._revert(trainer, pl_module)

    def unfinished(self, epochs: int) -> str:
        """How many cycles were left."""
        return (
            f"SqueezeRelease(cycles={self.cycles}): training ended after {counted(epochs, 'epoch')}, with "
            f"{counted(self.minimized, 'cycle')} done. All of them take {self.last_epoch} epochs."
        )

    def state_dict(self) -> dict[str, Any]:
        """Masks, the last good network and how far the cycles have come."""
        return super().state_dict() | {
            "masks": self.masks,
            "last_good": vars(self.last_good) if self.last_good is not None else None,
            "last_good_methods": self.last_good_methods,
            "stopped": self.stopped,
            "cycles_done": self.cycles_done,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an interrupted run."""
        super().load_state_dict(state_dict)
        self.masks, self.stopped = state_dict["masks"], state_dict["stopped"]
        self.last_good = Snapshot(**state_dict["last_good"]) if state_dict["last_good"] is not None else None
        self.cycles_done = state_dict["cycles_done"]
        self.last_good_methods = state_dict.get("last_good_methods", 0)

    def _prune(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, cycle: int) -> None:
        network = network_of(pl_module)
        dense = record_of(pl_module).dense
        assert dense is not None and self._example is not None, "the dense epochs have ended"
        options: dict[str, Any] = {"criterion": self.criterion, "select_inputs": self.select_inputs}
        least = dense.parameters / self.target_factor
        sparsity = sparsity_within(network, _at(self.sparsity, cycle), least, self._example, **options)
        report = sparsify(network, sparsity, example_inputs=self._example, optimizers=trainer.optimizers, **options)
        self.masks = report.masks
        self.metric = None  # it was measured before the pruning
        refresh_ddp(trainer, pl_module)

    def _minimize(self, network: nn.Module, inputs: Inputs, optimizers: Iterable[Optimizer] = ()) -> RewriteReport:
        return minimize(network, inputs, select_inputs=self.select_inputs, optimizers=optimizers)

    def _end_cycle(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *, last: bool = False
    ) -> None:
        self.masks = {}
        if self._too_bad(pl_module):
            self.stopped = True
            self._revert(trainer, pl_module)
            return
        report = self.rewrite(trainer, pl_module, "squeeze-release", self._minimize)
        self.cycles_done += 1
        self.last_good = Snapshot.take(network_of(pl_module), self._metrics())
        self.last_good_methods = len(record_of(pl_module).methods)
        dense = record_of(pl_module).dense
        self.stopped = dense is not None and dense.parameters / report.parameters_after >= self.target_factor
        if self.cycles_done < self.cycles and not self.stopped and not last:
            self._release(trainer, pl_module)

    def _release(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        release(
            network_of(pl_module),
            max_drift=self.max_drift,
            batches=[self._example],
            example_inputs=self._example,
            seed=self.seed * 1_000_003 + trainer.current_epoch,
            optimizers=trainer.optimizers,
        )
        refresh_ddp(trainer, pl_module)

    def _too_bad(self, pl_module: lightning.LightningModule) -> bool:
        dense = record_of(pl_module).dense
        if self.max_accuracy_drop >= 1 or dense is None:
            return False
        if self.metric is None or self.monitor not in dense.metrics:
            raise self._no_metric()
        return dense.metrics[self.monitor] - self.metric > self.max_accuracy_drop

    def _no_metric(self) -> ValueError:
        return ArgumentError(
            f"SqueezeRelease(max_accuracy_drop={self.max_accuracy_drop}, monitor={self.monitor!r}): no such metric was "
            "logged in the validation after each epoch. Log it in validation_step, or name another."
        )

    def _revert(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Bring the last network back that was good enough: that of the last good cycle, or else the dense one."""
        good = self.last_good or record_of(pl_module).dense
        assert good is not None, "only a cycle makes a network worse than the dense one"
        network, record = network_of(pl_module), record_of(pl_module)
        rebuild(network, good.structure, optimizers=trainer.optimizers)
        network.load_state_dict(good.state_dict)
        rank_zero_warn(
            f"SqueezeRelease(max_accuracy_drop={self.max_accuracy_drop}), {place_in(trainer)}: {self.monitor} fell to "
            f"{self.metric:.4g}, so the last good network is back: {good.parameters:,} parameters, "
            f"{self.monitor} {good.metrics.get(self.monitor, torch.nan):.4g}"
        )
        self.metric, self.report, self._unseen = good.metrics.get(self.monitor), None, True
        del record.methods[self.last_good_methods :]
        refresh_ddp(trainer, pl_module)

    def _metrics(self) -> dict[str, float]:
        return {} if self.metric is None else {self.monitor: self.metric}

    def _group_sparsity(self, pl_module: lightning.LightningModule) -> GroupSparsity:
        assert self._example is not None
        network = network_of(pl_module)
        return GroupSparsity(network, channel_groups(network, self._example))

    def _check(self) -> None:
        for name, lowest in (("dense_epochs", 1), ("cycles", 1), ("shrink_epochs", 0), ("masked_epochs", 1)):
            if getattr(self, name) < lowest:
                raise ArgumentError(f"SqueezeRelease({name}={getattr(self, name)}): expected at least {lowest}.")
        for share in self.sparsity:
            check_share("SqueezeRelease", "sparsity", share)
        check_share("SqueezeRelease", "max_drift", self.max_drift)
        if not self.sparsity or not self.group_penalty or min(self.group_penalty) < 0:
            raise ArgumentError(
                f"SqueezeRelease(sparsity={self.sparsity}, group_penalty={self.group_penalty}): expected at least one "
                "value each, penalties of at least 0."
            )
        check_choice("SqueezeRelease", "criterion", self.criterion, get_args(Criterion))
        if self.target_factor < 1:
            raise ArgumentError(f"SqueezeRelease(target_factor={self.target_factor}): expected at least 1.")
        if not 0 <= self.max_accuracy_drop <= 1:
            raise ArgumentError(
                f"SqueezeRelease(max_accuracy_drop={self.max_accuracy_drop}): expected a share in [0, 1]; 1: no limit."
            )


def _at(values: list[float], cycle: int) -> float:
    return values[min(max(cycle, 0), len(values) - 1)]
