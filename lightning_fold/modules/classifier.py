"""A LightningModule that trains any network to classify."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from lightning_fold.callbacks.smoothness import check_regularization, log_spectrum, regularize
from lightning_fold.checkpointing import Snapshot, StructureCheckpoint, follow
from lightning_fold.models.factory import accepted_arguments, build_network, find_builder, without_pretraining
from lightning_fold.modules.hyperparameters import plain_arguments
from lightning_fold.regularizers import Smoothness


class Classifier(StructureCheckpoint):
    """Trains a network to tell classes apart, by cross-entropy.

    Batches are ``(inputs, targets)`` with ``(B,)`` int64 class indices; the network, kept as ``self.network``, maps
    inputs to ``(B, num_classes)`` logits. Logs ``loss/{train,val,test}`` and ``accuracy/{train,val,test}`` (share of
    right answers, in [0, 1]) per epoch. ``predict`` gives probabilities.

    After ``seed_everything(n)``, torch's generators are reseeded from (n, epoch) before the first batch of every
    training epoch, so that dropout and the like do not depend on how often the run was restarted.

    Checkpoints hold the arguments as plain values and load with ``weights_only=True``. What has no plain form (a
    network given as a module, an optimizer given as a lambda) is left out of ``hparams``: pass it to
    ``load_from_checkpoint``.

    Args:
        network: Dotted path of a class or function ("lightning_fold.models.CifarResNet"), a timm model name
            ("resnet18"), or a module.
        network_args: Keyword arguments for the network; ``num_classes`` is added where the network takes it.
        num_classes: Number of classes, at least 2.
        optimizer: Function from parameters to an optimizer; in YAML ``class_path`` and ``init_args``. None is
            ``torch.optim.AdamW`` with its own defaults.
        lr_scheduler: Function from an optimizer to a learning-rate schedule, stepped once per epoch; in YAML
            ``class_path`` and ``init_args``. ``ReduceLROnPlateau`` watches its ``monitor``, by default ``loss/val``.
        label_smoothing: Share of the target probability spread over all classes, in [0, 1).
        distillation: Share of the training objective that compares with the outputs of the network before its first
            rewrite, in [0, 1]; it counts from that rewrite on (Hinton et al. 2015, arXiv 1503.02531).
        temperature: Divides the logits of both networks in that comparison, above 0.
        regularizers: Penalties on weights, as ``SmoothnessRegularization`` adds them to any module; in YAML a list of
            ``class_path: lightning_fold.regularizers.Smoothness`` and ``init_args``. Dotted names begin with
            ``network.``.

    Raises:
        ValueError: num_classes, label_smoothing, distillation, temperature or the network's name outside what is said
            above.
        TypeError: network_args do not fit the network, or are given along with a module.
    """

    def __init__(
        self,
        network: str | nn.Module = "lightning_fold.models.MLP",
        network_args: dict[str, Any] | None = None,
        num_classes: int = 10,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        distillation: float = 0.0,
        temperature: float = 3.0,
        regularizers: list[Smoothness] | None = None,
    ):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"Classifier(num_classes={num_classes}): expected at least 2")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"Classifier(label_smoothing={label_smoothing}): expected a value in [0, 1)")
        if not 0 <= distillation <= 1 or temperature <= 0:
            raise ValueError(
                f"Classifier(distillation={distillation}, temperature={temperature}): expected distillation in [0, 1] "
                "and temperature above 0"
            )
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.save_hyperparameters(plain_arguments(type(self), arguments))
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.distillation, self.temperature = distillation, temperature
        self.regularizers = list(regularizers or [])
        self._teacher: _Teacher | None = None
        self.optimizer, self.lr_scheduler = optimizer or torch.optim.AdamW, lr_scheduler
        self.network: nn.Module = _make_network(network, network_args or {}, num_classes)
        self.accuracy = nn.ModuleDict(
            {f"accuracy_{split}": _accuracy(num_classes) for split in ("train", "val", "test")}
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of a batch of inputs."""
        return self.network(inputs)

    def loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training objective of a batch, averaged over examples, and the logits ``(B, num_classes)``."""
        logits = self(inputs)
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"Classifier(num_classes={self.num_classes}): the network returned shape {tuple(logits.shape)} for "
                f"{len(targets)} examples, expected {(len(targets), self.num_classes)}. "
                "Set num_classes and network_args so that they agree."
            )
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        teacher = self.teacher() if self.training and self.distillation > 0 else None
        if teacher is None:
            return loss, logits
        with torch.no_grad():
            expected = teacher(inputs)
        return torch.lerp(loss, distillation_loss(logits, expected, self.temperature), self.distillation), logits

    def teacher(self) -> nn.Module | None:
        """The network as it was before its first rewrite, in evaluation mode; None while there was none."""
        dense = follow(self).dense
        if dense is None:
            return None
        if self._teacher is None or self._teacher.dense is not dense:
            network = dense.network_like(self.network).to(self.device).eval().requires_grad_(False)
            self._teacher = _Teacher(dense, network)
        return self._teacher.network

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reseed torch from (global seed, epoch) before an epoch's first batch, alike on all processes.

        Not in ``on_train_epoch_start``: Lightning skips that hook after some restarts, and draws a random number after
        it in an unbroken run only.
        """
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None and batch_idx == 0:
            torch.manual_seed(int(seed) * 1_000_003 + self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the structure of the network; its values come from the checkpoint, not from timm again."""
        super().on_save_checkpoint(checkpoint)
        arguments = checkpoint.get("hyper_parameters", {})
        if isinstance(name := arguments.get("network"), str):
            kept = without_pretraining(name, arguments.get("network_args") or {})
            checkpoint["hyper_parameters"] = arguments | {"network_args": kept}

    def on_fit_start(self) -> None:
        """Refuse what the penalties cannot train with."""
        for regularizer in self.regularizers:
            check_regularization(regularizer, self.trainer, self)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add the gradients of the penalties."""
        for regularizer in self.regularizers:
            regularize(regularizer, self.trainer, self, optimizer)

    def on_train_epoch_end(self) -> None:
        """Log how fast the spectrum of the penalised weights decays."""
        for regularizer in self.regularizers:
            log_spectrum(regularizer, self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Objective of one batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one batch."""
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one batch."""
        self._step(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Probabilities ``(B, num_classes)``."""
        return self(batch[0]).softmax(dim=1)

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
        accuracy = cast(MulticlassAccuracy, self.accuracy[f"accuracy_{split}"])
        accuracy.update(logits, targets)
        self.log(f"loss/{split}", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(targets))
        self.log(f"accuracy/{split}", accuracy, on_step=False, on_epoch=True, prog_bar=split == "val")
        return loss


@dataclass(frozen=True)
class _Teacher:
    """The dense network that a module learns from; a module that is no part of it, nor of its checkpoints."""

    dense: Snapshot
    network: nn.Module


def distillation_loss(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(expected / T), softmax(logits / T)), averaged over the batch.

    Args:
        logits: (B, classes) of the network that learns.
        expected: (B, classes) of its teacher.
        temperature: T, above 0.
    """
    student, teacher = (F.log_softmax(values / temperature, dim=1) for values in (logits, expected))
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def _accuracy(num_classes: int) -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)


def _make_network(network: str | nn.Module, network_args: Mapping[str, Any], num_classes: int) -> nn.Module:
    if isinstance(network, nn.Module):
        if network_args:
            raise TypeError(
                f"Classifier(network=<{type(network).__name__}>, network_args={dict(network_args)!r}): a module is "
                "taken as it is; leave network_args out, or give the network by name"
            )
        return network
    extra = {"num_classes": num_classes} if "num_classes" in accepted_arguments(find_builder(network)) else {}
    return build_network(network, {**extra, **network_args})
