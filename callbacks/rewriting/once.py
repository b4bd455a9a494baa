"""Callbacks that rewrite once, at the end of training or at a given epoch."""

import warnings
from copy import deepcopy
from typing import Any, get_args

import lightning
from torch import nn

from lightning_fold.arguments import as_list, check_choice, check_count
from lightning_fold.callbacks.loop.batches import training_batches
from lightning_fold.callbacks.loop.inputs import network_inputs
from lightning_fold.callbacks.rewriting.base import Rewrite, RewriteCallback
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs, few_examples
from lightning_fold.report import counted
from lightning_fold.rewrites.reduction.options import Compensate
from lightning_fold.rewrites.size import Size


class RewriteOnce(RewriteCallback):
    """Base of the callbacks that rewrite a network once.

    Args:
        method: name of the rewrite.
        size: the size of the network afterwards.
        at_epoch: epoch before which the network is rewritten, counted from 0, so that the rest of the training
            follows; -1 rewrites at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.
        batches: training batches that the rewrite may look at; 0 for none.
    """

    def __init__(
        self,
        method: str,
        size: Size,
        at_epoch: int = -1,
        module: str = "",
        monitor: str = "accuracy/val",
        batches: int = 0,
    ) -> None:
        super().__init__(module, monitor)
        size.check(type(self).__name__)
        check_count(type(self).__name__, "batches", batches)
        if at_epoch < -1:
            raise ArgumentError(f"{type(self).__name__}(at_epoch={at_epoch}): expected an epoch of at least 0, or -1.")
        self.method, self.at_epoch, self.done = method, at_epoch, False
        self.keep, self.of, self.batches = size.keep, size.of, batches

    @property
    def finished(self) -> bool:
        """Whether the rewrite was done."""
        return self.done

    def change(self, batches: list[Inputs] | None) -> Rewrite:
        """The rewrite, as a function of network, inputs and optimizers; ``batches`` are the network's inputs."""
        raise NotImplementedError

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Check that the rewrite comes before the end of training, and not in the middle of another callback's work."""
        super().setup(trainer, pl_module, stage)
        epochs = trainer.max_epochs or 0
        if stage == "fit" and 0 <= epochs <= self.at_epoch and not trainer.fast_dev_run:
            raise ArgumentError(
                f"{type(self).__name__}(at_epoch={self.at_epoch}): expected an epoch below "
                f"Trainer(max_epochs={epochs}), or -1 for the end of training."
            )

        if stage == "fit" and not trainer.fast_dev_run:
            self._check_order(trainer)

    def _check_order(self, trainer: lightning.Trainer) -> None:
        """What another callback occupies must end before this rewrite, or begin after it."""
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        epoch = trainer.max_epochs if self.at_epoch == -1 else self.at_epoch
        for place, other in enumerate(callbacks):
            if not isinstance(other, RewriteCallback) or not other.reserved_epochs or epoch is None or epoch < 0:
                continue
            first, end = other.reserved_epochs.start, other.reserved_epochs.stop
            listed_after = callbacks.index(self) > place
            if first < epoch < end or (epoch == first and listed_after) or (epoch == end and not listed_after):
                mine, theirs = type(self).__name__, type(other).__name__
                raise ArgumentError(
                    f"{mine}(at_epoch={self.at_epoch}): {theirs} works on the network in epochs {first} to {end - 1}, "
                    f"with masks that would not follow the change of shape. Set at_epoch={end} or later, or -1, and "
                    f"list {mine} after {theirs} in Trainer(callbacks=[...])."
                )

    def begin_epoch(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Rewrite before the first batch of the given epoch."""
        if 0 <= self.at_epoch <= trainer.current_epoch:
            self._rewrite_once(trainer, pl_module)

    def dry_run(self, network: nn.Module, inputs: Inputs) -> None:
        """Rewrite a copy, on few examples: what fails there would fail at the end of training."""
        if self.done:
            return
        few = few_examples(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again
            self.change([few] if self.batches else None)(deepcopy(network), few, ())

    def finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Rewrite at the end of training."""
        if self.at_epoch == -1 and not trainer.interrupted:
            self._rewrite_once(trainer, pl_module)

    def unfinished(self, epochs: int) -> str:
        """The epoch that was not reached."""
        return (
            f"{type(self).__name__}(at_epoch={self.at_epoch}): training ended after {counted(epochs, 'epoch')}, and "
            "the network stays as it is. Set an earlier epoch, or at_epoch=-1 for the end of training, whenever "
            "that comes."
        )

    def state_dict(self) -> dict[str, Any]:
        """Whether the rewrite was done."""
        return super().state_dict() | {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an interrupted run."""
        super().load_state_dict(state_dict)
        self.done = state_dict["done"]

    def _rewrite_once(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.done:
            return
        self.rewrite(trainer, pl_module, self.method, self.change(self._batches(trainer, pl_module)))
        self.done = True

    def _batches(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> list[Inputs] | None:
        """The network's inputs for the first training batches, the same ones on every process."""
        # a run resumed after its last epoch has not told its samplers which it was
        epoch = max(trainer.current_epoch - 1, 0) if self.at_epoch == -1 else None
        batches = training_batches(trainer, pl_module, self.batches, epoch=epoch)
        found = [network_inputs(pl_module, batch, index) for index, batch in enumerate(batches)]
        return trainer.strategy.broadcast(found) if found else None


class ReduceOnce(RewriteOnce):
    """Base of the callbacks that make widths smaller once, perhaps with the help of training batches.

    Args:
        method: name of the rewrite.
        size: the size of the network afterwards.
        compensate: "least-squares", "bias" or "none".
        repair: what is done about statistics.
        repairs: the known values of ``repair``.
        batches: training batches that the rewrite may look at; 0 for none.
        skip: patterns of layers whose widths stay.
        at_epoch: epoch before which the network is rewritten, counted from 0; -1 rewrites at the end.
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of a logged validation metric, higher is better.
    """

    def __init__(
        self,
        method: str,
        size: Size,
        compensate: str,
        repair: str,
        repairs: tuple[str, ...],
        batches: int,
        skip: list[str],
        at_epoch: int,
        module: str,
        monitor: str,
    ) -> None:
        super().__init__(method, size, at_epoch, module, monitor, batches)
        call = type(self).__name__
        check_choice(call, "compensate", compensate, get_args(Compensate))
        check_choice(call, "repair", repair, repairs)
        if repair == "data" and batches == 0:
            raise ArgumentError(f"{call}(batches=0, repair='data'): expected at least 1 batch.")
        self.compensate, self.repair, self.skip = compensate, repair, as_list(call, "skip", skip)

    def common(self, batches: list[Inputs] | None) -> dict[str, Any]:
        """The arguments of the rewrite."""
        return {
            "keep": self.keep,
            "of": self.of,
            "compensate": self.compensate,
            "repair": self.repair,
            "batches": batches,
            "skip": self.skip,
        }
