"""Base of the LightningModules: a named network, cross-entropy, distillation, penalties, optimizer and schedule."""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_fold.callbacks.smoothness_regularization import check_regularization, log_spectrum, regularize
from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.models.factory import accepted_arguments, build_network, find_builder, without_pretraining
from lightning_fold.modules.distillation import distillation_loss
from lightning_fold.modules.hyperparameters import plain_arguments
from lightning_fold.regularizers import Smoothness
from lightning_fold.storage.checkpoints import Snapshot, StructureCheckpoint, record_of
from lightning_fold.structure.graph.trace import unwrapped


class NetworkModule(StructureCheckpoint):
    """Trains a network by cross-entropy to predict one class for each target: the base of this package's modules.

    A subclass lists its arguments (those of :class:`lightning_fold.modules.Classifier`, with its own name for the
    number of classes), defines its metrics and passes its arguments on.

    Args:
        arguments: the subclass's arguments by name.

    Raises:
        ArgumentError: the number of classes, label_smoothing, distillation or temperature is out of range, or the
            network's name is unknown.
        ArgumentTypeError: network_args do not fit the network, or are given together with a module; regularizers is
            not a list of penalties.
    """

    size: ClassVar[str]
    """The name of the argument for the number of classes; networks with an argument of this name receive it."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        _check(type(self).__name__, self.size, arguments)
        self.save_hyperparameters(plain_arguments(type(self), arguments))
        self.classes: int = arguments[self.size]
        self.label_smoothing: float = arguments["label_smoothing"]
        self.distillation: float = arguments["distillation"]
        self.temperature: float = arguments["temperature"]
        self.regularizers = list(arguments["regularizers"] or [])
        self._teacher: _Teacher | None = None
        self.optimizer = arguments["optimizer"] or torch.optim.AdamW
        self.lr_scheduler = arguments["lr_scheduler"]
        self.network: nn.Module = self._make_network(arguments["network"], arguments["network_args"] or {})

    def update_metrics(self, split: str, logits: Tensor, targets: Tensor) -> dict[str, Metric]:
        """Update the metrics of a split with a batch and return them by name."""
        raise NotImplementedError

    def arguments_of(self, network: str, network_args: Mapping[str, Any]) -> dict[str, Any]:
        """``network_args``, plus the number of classes if ``network`` takes it."""
        extra = {self.size: self.classes} if self.size in accepted_arguments(find_builder(network)) else {}
        return {**extra, **network_args}

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of a batch of inputs, classes last."""
        return self.network(inputs)

    def loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The training objective of a batch, averaged over its targets, and the logits, classes last."""
        logits = self(inputs)
        if logits.ndim != targets.ndim + 1 or logits.shape[-1] != self.classes:
            raise ArgumentError(
                f"{type(self).__name__}({self.size}={self.classes}): the network returned shape {tuple(logits.shape)} "
                f"for {len(targets)} examples, expected {(*targets.shape, self.classes)}. "
                f"Make {self.size} and network_args agree."
            )
        flat = logits.flatten(0, -2)
        loss = F.cross_entropy(flat, targets.flatten(), label_smoothing=self.label_smoothing)
        teacher = self.teacher() if self.training and self.distillation > 0 else None
        if teacher is None:
            return loss, logits
        with torch.no_grad():
            expected = teacher(inputs).flatten(0, -2)
        return torch.lerp(loss, distillation_loss(flat, expected, self.temperature), self.distillation), logits

    def teacher(self) -> nn.Module | None:
        """The network before its first rewrite, in evaluation mode; None before that rewrite."""
        dense = record_of(self).dense
        if dense is None:
            return None
        if self._teacher is None or self._teacher.dense is not dense:
            network = deepcopy(unwrapped(self.network))
            dense.restore(network.get_submodule(".".join(self._rewritten())))
            self._teacher = _Teacher(dense, network.to(self.device).eval().requires_grad_(False))
        return self._teacher.network

    def _rewritten(self) -> list[str]:
        """The path, inside the network, of the part that is rewritten; empty for the whole network."""
        path = record_of(self).network.split(".")[1:]
        return path[1:] if path[:1] == ["_orig_mod"] else path

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reseed torch from (global seed, epoch) before the first batch of an epoch, alike on all processes.

        ``on_train_epoch_start`` would not do: Lightning skips it after some restarts, and draws a random number after
        it only in an unbroken run.
        """
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None and batch_idx == 0:
            torch.manual_seed(int(seed) * 1_000_003 + self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the network's structure; on loading, weights come from the checkpoint and not from timm again."""
        super().on_save_checkpoint(checkpoint)
        arguments = checkpoint.get("hyper_parameters", {})
        if isinstance(name := arguments.get("network"), str):
            kept = without_pretraining(name, arguments.get("network_args") or {})
            checkpoint["hyper_parameters"] = arguments | {"network_args": kept}

    def setup(self, stage: str) -> None:
        """Refuse data with more classes than the network has; torch's own errors would name neither."""
        data: Any = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "num_classes", self.classes)
        if found > self.classes:
            raise ArgumentError(
                f"{type(self).__name__}({self.size}={self.classes}): {type(data).__name__} has {found} different "
                f"targets. Set {self.size}={found} or more."
            )

    def on_fit_start(self) -> None:
        """Refuse strategies and optimizers that the penalties cannot train with."""
        for regularizer in self.regularizers:
            check_regularization(regularizer, self.trainer, self)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add the gradients of the penalties."""
        step = self.trainer.global_step // len(self.trainer.optimizers)
        for regularizer in self.regularizers:
            regularize(regularizer, self.trainer, self, optimizer, step=step)

    def on_train_epoch_end(self) -> None:
        """Log the spectrum's decay of the penalised weights."""
        for regularizer in self.regularizers:
            log_spectrum(regularizer, self.trainer, self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Objective of one batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and metrics of one batch."""
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and metrics of one batch."""
        self._step(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Probabilities, classes last."""
        return self(batch[0]).softmax(dim=-1)

    def configure_optimizers(self) -> Any:
        """Build the optimizer over all parameters and the schedule."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        schedule = {"scheduler": scheduler, "interval": "epoch", "monitor": getattr(scheduler, "monitor", "loss/val")}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _step(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
        inputs, targets = batch
        loss, logits = self.loss(inputs, targets)
        self.log(f"loss/{split}", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(targets))
        for name, metric in self.update_metrics(split, logits.detach(), targets).items():
            self.log(f"{name}/{split}", metric, on_step=False, on_epoch=True, prog_bar=split == "val")
        return loss

    def _make_network(self, network: str | nn.Module, network_args: Mapping[str, Any]) -> nn.Module:
        if not isinstance(network, nn.Module):
            return build_network(network, self.arguments_of(network, network_args))
        if network_args:
            call = f"{type(self).__name__}(network=<{type(network).__name__}>, network_args={dict(network_args)!r})"
            raise ArgumentTypeError(
                f"{call}: a module is used as it is; omit network_args, or give the network by name"
            )
        return network


@dataclass(frozen=True)
class _Teacher:
    """The dense network that a module learns from, kept out of its submodules and checkpoints."""

    dense: Snapshot
    network: nn.Module


def network_source(module: lightning.LightningModule) -> tuple[str | None, dict[str, Any]]:
    """The name and arguments that build the rewritten network of a ``NetworkModule``.

    The name is ``None`` if the network was given as a module or only a part of it is rewritten.
    """
    name = module.hparams.get("network")
    if not isinstance(module, NetworkModule) or not isinstance(name, str) or module._rewritten():
        return None, {}
    return name, module.arguments_of(name, module.hparams.get("network_args") or {})


def own_arguments(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments, from its ``locals()``."""
    return {name: value for name, value in variables.items() if name not in ("self", "__class__")}


def _check(call: str, size: str, arguments: Mapping[str, Any]) -> None:
    if arguments[size] < 2:
        raise ArgumentError(f"{call}({size}={arguments[size]}): expected at least 2")
    if not 0 <= (label_smoothing := arguments["label_smoothing"]) < 1:
        raise ArgumentError(f"{call}(label_smoothing={label_smoothing}): expected a value in [0, 1)")
    distillation, temperature = arguments["distillation"], arguments["temperature"]
    if not 0 <= distillation <= 1 or temperature <= 0:
        raise ArgumentError(
            f"{call}(distillation={distillation}, temperature={temperature}): expected distillation in [0, 1] "
            "and temperature above 0"
        )
    regularizers = arguments["regularizers"]
    several = isinstance(regularizers, (list, tuple)) and all(isinstance(each, Smoothness) for each in regularizers)
    if regularizers is not None and not several:
        raise ArgumentTypeError(
            f"{call}(regularizers={regularizers!r}): expected a list of Smoothness, for example "
            "regularizers=[Smoothness({'nuclear_norm': 1e-3})]"
        )
