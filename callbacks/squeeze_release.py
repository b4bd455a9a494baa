"""SqueezeRelease: cycles of pruning, minimizing and releasing during training."""

from collections.abc import Iterable
from typing import Any, get_args

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_fold.arguments import as_list, check_choice, check_share
from lightning_fold.callbacks.loop.accuracy_limit import AccuracyLimit
from lightning_fold.callbacks.loop.cycles import CycleSchedule, Phase
from lightning_fold.callbacks.loop.run import CompressionRun
from lightning_fold.callbacks.loop.state import CycleState
from lightning_fold.callbacks.rewriting.base import RewriteCallback
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.regularizers import GroupSparsity
from lightning_fold.report import RewriteReport, counted
from lightning_fold.rewrites.exact.minimize import minimize
from lightning_fold.rewrites.sparsity.release import release
from lightning_fold.rewrites.sparsity.sparsify import Criterion, prunable_weights, sparsify
from lightning_fold.rewrites.sparsity.sparsity_for_target import sparsity_within
from lightning_fold.storage.checkpoints import Snapshot
from lightning_fold.structure.groups import channel_groups


class SqueezeRelease(RewriteCallback):
    """Shrinks a network in cycles while it trains; the function changes only where weights are pruned.

    After ``dense_epochs`` of plain training, each cycle trains with a group penalty, sets weights to zero (prune),
    trains on with these held at zero, and rewrites the network into a smaller dense one that computes the same function
    (minimize). If another cycle follows, the remaining zeros become trainable again as small noise (release). The
    epochs after the last cycle train the small network. Rewrites happen before the first batch of an epoch; the
    optimizer state of the remaining weights and the learning-rate schedule are kept. Checkpoints store the structure,
    and a resumed run ends exactly as an unbroken one.

    Suggested: a fully trained dense network, a sparsity that falls from 0.5 to 0.1 over the cycles, several short
    cycles rather than a few long ones, a target factor, and final epochs with a falling learning rate. A cycle gains
    little unless whole channels become empty, so the criterion "connected" is far better than "magnitude". It does not
    help a network that is already as narrow as its task allows. If most of the remaining parameters are in one wide
    layer, stop the cycles earlier and let LowRankFactorization split that layer before the final epochs. In training
    mode BatchNorm normalises with batch statistics, so channels that are constant in evaluation mode change slightly.

    Source: "Squeeze-Release: Iterative Pruning with Exact Structural Minimization" (arXiv 2606.14346).

    Args:
        dense_epochs: epochs before the first cycle, at least 1; the network after them is the dense reference.
        cycles: number of cycles, at least 1.
        shrink_epochs: epochs of each cycle before pruning, at least 0.
        masked_epochs: epochs of each cycle after pruning, with pruned weights held at zero, at least 1.
        sparsity: share of weights at zero after pruning, in [0, 1), one value for each cycle; the last one repeats.
        criterion: which weights are pruned first: the smallest ("magnitude"), or those of the weakest channels
            ("connected": by the weaker of the two channels that a weight connects), so that whole channels empty.
        group_penalty: strength of the group penalty, at least 0, one value for each cycle; the last one repeats. Each
            optimizer step reduces every channel's norm by this times the learning rate.
        max_drift: how far releasing zeros may change the outputs on one batch, as a share in [0, 1).
        target_factor: compression factor at which the cycles stop, at least 1; the last pruning stops right there.
        select_inputs: also prune input features; a selection layer drops those that the first Linear layer no longer
            reads.
        max_accuracy_drop: largest drop of the monitored metric below the dense network at the end of a cycle. A larger
            drop ends the cycles and restores the last good network.
        seed: seed of the noise.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of the logged validation metric that the limit watches, higher is better.

    Raises:
        ArgumentError: a value is out of range.
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
        self.schedule = CycleSchedule(dense_epochs, cycles, shrink_epochs, masked_epochs)
        self._check()
        self.limit = AccuracyLimit("SqueezeRelease", max_accuracy_drop, monitor)
        self.state = CycleState()
        self._penalty: GroupSparsity | None = None
        self._steps = -1

    @property
    def reserved_epochs(self) -> range:
        """The epochs of the cycles: their masks and penalties belong to the network they started with."""
        return self.schedule.cycling_epochs

    @property
    def finished(self) -> bool:
        """Whether the last cycle has ended."""
        return self.state.stopped or self.state.cycles_done >= self.cycles

    def phase(self, epoch: int) -> Phase:
        """The phase that ``epoch`` belongs to, counted from 0; "final" once the cycles have stopped."""
        planned = self.schedule.phase(epoch)
        return "final" if self.state.stopped and planned != "dense" else planned

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Check that the cycles fit into the training."""
        super().setup(trainer, pl_module, stage)
        run = self.run_of(trainer, pl_module)
        if stage == "fit" and not run.fast_dev_run:
            self._check_epochs(trainer.max_epochs or 0)
            self.limit.check_trainer(trainer)
        if not prunable_weights(run.network):
            raise ArgumentError(
                f"SqueezeRelease: {type(run.network).__name__} has no Linear or convolution weight; expected a network "
                "with layers that can be pruned."
            )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Store the validation metric; refuse at once if the accuracy limit needs one and it is missing."""
        super().on_validation_end(trainer, pl_module)
        if self.run_of(trainer, pl_module).fitting:
            self.limit.check_logged(trainer)

    def begin_epoch(self, run: CompressionRun) -> None:
        """Before the first batch of an epoch: minimize and release at the end of a cycle, prune in its middle."""
        epoch, self._steps = run.epoch, run.trainer.global_step
        if self.state.cycles_done < self.schedule.cycles_before(epoch) and not self.state.stopped:
            self._end_cycle(run)
        self.state.move_masks(run.pl_module.device)
        phase = self.phase(epoch)
        if phase != "dense":
            run.remember_dense(self.metrics)
        if phase == "masked" and not self.state.masks:
            self._prune(run)
        wanted = phase in ("shrink", "masked") and self._of_cycle(self.group_penalty, epoch) > 0
        self._penalty = GroupSparsity(run.network, channel_groups(run.network, run.inputs)) if wanted else None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: shrink the channels, hold pruned weights at zero."""
        run = self.run_of(trainer, pl_module)
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        if self._penalty is not None and stepped:
            self._penalty.shrink(run.learning_rate * self._of_cycle(self.group_penalty, run.epoch))
        if self.state.masks:
            self.state.apply_masks(run.network)

    def finish(self, run: CompressionRun) -> None:
        """Minimize a network that is still masked; restore the last good one if the final one is worse than allowed."""
        if self.state.masks:
            self._end_cycle(run, last=True)
        elif self.limit.exceeded(run.dense, self.metric):
            self._revert(run)

    def unfinished(self, epochs: int) -> str:
        """The warning that not all cycles were done."""
        return (
            f"SqueezeRelease(cycles={self.cycles}): training ended after {counted(epochs, 'epoch')}, with "
            f"{counted(self.state.cycles_done, 'cycle')} done. All cycles take {self.schedule.last_epoch} epochs."
        )

    def state_dict(self) -> dict[str, Any]:
        """Masks, the last good network and the progress of the cycles."""
        return super().state_dict() | self.state.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of an interrupted run."""
        super().load_state_dict(state_dict)
        self.state = CycleState.from_state_dict(state_dict)

    def _prune(self, run: CompressionRun) -> None:
        assert run.dense is not None, "the dense epochs have ended"
        options: dict[str, Any] = {"criterion": self.criterion, "select_inputs": self.select_inputs}
        least = run.dense.parameters / self.target_factor
        wanted = self._of_cycle(self.sparsity, run.epoch)
        sparsity = sparsity_within(run.network, wanted, least, run.inputs, **options)
        report = sparsify(run.network, sparsity, example_inputs=run.inputs, optimizers=run.optimizers, **options)
        self.state.masks = report.masks
        self.metric = None  # it was measured before pruning
        run.refresh_ddp()

    def _minimize(self, network: nn.Module, inputs: Inputs, optimizers: Iterable[Optimizer] = ()) -> RewriteReport:
        return minimize(network, inputs, select_inputs=self.select_inputs, optimizers=optimizers)

    def _end_cycle(self, run: CompressionRun, *, last: bool = False) -> None:
        state = self.state
        state.masks = {}
        if self.limit.exceeded(run.dense, self.metric):
            state.stopped = True
            self._revert(run)
            return
        report = self.rewrite(run, "squeeze-release", self._minimize)
        state.cycles_done += 1
        state.last_good = Snapshot.take(run.network, self.metrics)
        state.last_good_methods = len(run.record.methods)
        state.stopped = run.dense is not None and run.dense.parameters / report.parameters_after >= self.target_factor
        if not self.finished and not last:
            self._release(run)

    def _release(self, run: CompressionRun) -> None:
        release(
            run.network,
            max_drift=self.max_drift,
            batches=[run.inputs],
            example_inputs=run.inputs,
            seed=self.seed * 1_000_003 + run.epoch,
            optimizers=run.optimizers,
        )
        run.refresh_ddp()

    def _revert(self, run: CompressionRun) -> None:
        """Restore the last good network: that of the last good cycle, or else the dense one."""
        good, fell_to = self.state.last_good or run.dense, self.metric
        assert good is not None, "only a cycle makes a network worse than the dense one"
        self.take_back(run, good, self.state.last_good_methods)
        rank_zero_warn(
            f"SqueezeRelease(max_accuracy_drop={self.max_accuracy_drop}), {run.place}: {self.monitor} fell to "
            f"{fell_to:.4g}, so the last good network was restored: {good.parameters:,} parameters, "
            f"{self.monitor} {good.metrics.get(self.monitor, torch.nan):.4g}"
        )

    def _of_cycle(self, values: list[float], epoch: int) -> float:
        """The value for the cycle of ``epoch``; the last one repeats."""
        return values[min(self.schedule.cycle(epoch), len(values) - 1)]

    def _check_epochs(self, epochs: int) -> None:
        needed = self.schedule.last_epoch
        if 0 <= epochs < needed:
            raise ArgumentError(
                f"SqueezeRelease({self.schedule}): needs {needed} epochs, found Trainer(max_epochs={epochs}). "
                f"Set max_epochs={needed} or more, or take fewer cycles."
            )

    def _check(self) -> None:
        self.schedule.check("SqueezeRelease")
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
