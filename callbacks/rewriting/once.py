"""Base classes of callbacks that rewrite once, at the end of training or before a given epoch."""

import warnings
from abc import abstractmethod
from copy import deepcopy
from typing import Any, get_args

import lightning
from torch import nn

from lightning_fold.arguments import as_list, check_choice, check_count
from lightning_fold.callbacks.loop.run import CompressionRun
from lightning_fold.callbacks.rewriting.base import Rewrite, RewriteCallback
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs, few_examples
from lightning_fold.report import counted
from lightning_fold.rewrites.calibration import CalibrationSource, calibration_source
from lightning_fold.rewrites.reduction.options import Compensate
from lightning_fold.rewrites.reduction.recovery.repairs import repair_of
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.size import Keep, Of, Size


class RewriteOnce(RewriteCallback):
    """Rewrites a network once, before an epoch or at the end of training: the base of such callbacks.

    To write your own, override ``change(batches)``. It returns a function of network, example inputs and optimizers
    that rewrites the network in place and returns a ``RewriteReport``, as ``lightning_fold.prune`` does::

        class Shrink(RewriteOnce):
            def __init__(self, sparsity: float = 0.5, at_epoch: int = -1) -> None:
                super().__init__("shrink", at_epoch=at_epoch)
                self.sparsity = sparsity

            def change(self, batches):
                def shrink(network, inputs, optimizers):
                    sparsify(network, self.sparsity, example_inputs=inputs, optimizers=optimizers)
                    return minimize(network, inputs, optimizers=optimizers)

                return shrink

    Before training, the rewrite runs once on a copy of the network, with two examples and no optimizers, so that it
    fails early. A resumed run rewrites at the same point, on the same batches. If you override a Lightning hook, call
    ``super()``.

    Args:
        method: name of the rewrite.
        size: target size of the network; its ``keep`` and ``of`` become attributes. ``None`` for a rewrite without a
            target size.
        at_epoch: rewrite before this epoch, counted from 0, and train on afterwards; -1 rewrites at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.
        batches: number of training batches passed to the rewrite; 0 for none.
    """

    def __init__(
        self,
        method: str,
        size: Size | None = None,
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
        batches: int = 0,
    ) -> None:
        super().__init__(module, monitor)
        if size is not None:
            size.check(type(self).__name__)
            self.keep: Keep = size.keep
            self.of: Of = size.of
        check_count(type(self).__name__, "batches", batches)
        if at_epoch < -1:
            raise ArgumentError(f"{type(self).__name__}(at_epoch={at_epoch}): expected an epoch of at least 0, or -1.")
        self.method, self.at_epoch, self.done = method, at_epoch, False
        self.batches = batches

    @property
    def finished(self) -> bool:
        """Whether the rewrite was done."""
        return self.done

    @abstractmethod
    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """The rewrite, as a function of network, inputs and optimizers.

        Args:
            batches: the network's inputs for the number of training batches set in the constructor; ``None`` for 0.
        """

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Check that the rewrite happens before training ends and outside the epochs that other callbacks reserve."""
        super().setup(trainer, pl_module, stage)
        run, epochs = self.run_of(trainer, pl_module), trainer.max_epochs or 0
        if stage != "fit" or run.fast_dev_run:
            return
        if 0 <= epochs <= self.at_epoch:
            raise ArgumentError(
                f"{type(self).__name__}(at_epoch={self.at_epoch}): expected an epoch below "
                f"Trainer(max_epochs={epochs}), or -1 for the end of training."
            )
        self._check_order(run)

    def _check_order(self, run: CompressionRun) -> None:
        """Epochs reserved by another callback must end before this rewrite or begin after it."""
        epoch = run.trainer.max_epochs if self.at_epoch == -1 else self.at_epoch
        for place, other in enumerate(run.callbacks):
            if not isinstance(other, RewriteCallback) or not other.reserved_epochs or epoch is None or epoch < 0:
                continue
            first, end = other.reserved_epochs.start, other.reserved_epochs.stop
            listed_after = run.callbacks.index(self) > place
            if first < epoch < end or (epoch == first and listed_after) or (epoch == end and not listed_after):
                mine, theirs = type(self).__name__, type(other).__name__
                raise ArgumentError(
                    f"{mine}(at_epoch={self.at_epoch}): {theirs} works on the network in epochs {first} to {end - 1}, "
                    f"with masks that would not follow the change of shape. Set at_epoch={end} or later, or -1, and "
                    f"list {mine} after {theirs} in Trainer(callbacks=[...])."
                )

    def begin_epoch(self, run: CompressionRun) -> None:
        """Rewrite before the first batch of the given epoch."""
        if 0 <= self.at_epoch <= run.epoch:
            self._rewrite_once(run)

    def dry_run(self, network: nn.Module, inputs: Inputs) -> None:
        """Rewrite a copy on a few examples: an error at the end of training shows here first."""
        if self.done:
            return
        few = few_examples(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the real rewrite repeats them
            self.change([few] if self.batches else None)(deepcopy(network), few, ())

    def finish(self, run: CompressionRun) -> None:
        """Rewrite at the end of training."""
        if self.at_epoch == -1 and not run.trainer.interrupted:
            self._rewrite_once(run)

    def unfinished(self, epochs: int) -> str:
        """The warning that names the epoch that was not reached."""
        return (
            f"{type(self).__name__}(at_epoch={self.at_epoch}): training ended after {counted(epochs, 'epoch')}, and "
            "the network was not rewritten. Set an earlier epoch, or at_epoch=-1 to rewrite at the end, whenever "
            "training ends."
        )

    def state_dict(self) -> dict[str, Any]:
        """Whether the rewrite was done."""
        return super().state_dict() | {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of an interrupted run."""
        super().load_state_dict(state_dict)
        self.done = state_dict["done"]

    def _rewrite_once(self, run: CompressionRun) -> None:
        if self.done:
            return
        # Lightning does not set the epoch on the samplers of a run resumed after its last epoch
        epoch = max(run.epoch - 1, 0) if self.at_epoch == -1 else None
        batches = run.inputs_of_batches(self.batches, epoch=epoch)
        self.rewrite(run, self.method, self.change(batches))
        self.done = True


class ReduceOnce(RewriteOnce):
    """Reduces widths once, with or without training batches: the base of pruning and folding.

    Args:
        method: name of the rewrite.
        size: target size of the network.
        compensate: "least-squares", "bias" or "none".
        repair: how statistics are repaired: a name, a class path or a :class:`Repair`.
        batches: number of training batches passed to the rewrite; 0 for none.
        calibration: source of values inside the network: a name, a class path or a :class:`CalibrationSource`.
        skip: patterns of layers whose widths are kept.
        at_epoch: rewrite before this epoch, counted from 0; -1 rewrites at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.
    """

    def __init__(
        self,
        method: str,
        size: Size,
        compensate: str,
        repair: str | Repair,
        batches: int,
        calibration: str | CalibrationSource,
        skip: list[str],
        at_epoch: int,
        module: str,
        monitor: str,
    ) -> None:
        super().__init__(method, size, at_epoch, module, monitor, batches)
        call = type(self).__name__
        check_choice(call, "compensate", compensate, get_args(Compensate))
        needs_batches = repair_of(call, repair, merging=method == "fold").needs_batches
        calibration_source(call, calibration)
        if needs_batches and batches == 0:
            raise ArgumentError(f"{call}(batches=0, repair={repair!r}): expected at least 1 batch.")
        self.calibration = calibration
        self.compensate, self.repair, self.skip = compensate, repair, as_list(call, "skip", skip)

    def common(self, batches: list[Inputs] | None) -> dict[str, Any]:
        """The arguments of the rewrite."""
        return {
            "keep": self.keep,
            "of": self.of,
            "compensate": self.compensate,
            "repair": self.repair,
            "batches": batches,
            "calibration": self.calibration,
            "skip": self.skip,
        }
