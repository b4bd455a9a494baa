"""A LightningModule that trains any network as a classifier."""

from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from lightning_fold.modules.base import NetworkModule, own_arguments
from lightning_fold.regularizers import Smoothness


class Classifier(NetworkModule):
    """Trains a network to classify, by cross-entropy.

    Batches are ``(inputs, targets)`` with ``(B,)`` int64 class indices; the network, kept as ``self.network``, maps
    inputs to ``(B, num_classes)`` logits. Logs ``loss/{train,val,test}`` and ``accuracy/{train,val,test}`` (share of
    correct predictions, in [0, 1]) per epoch. ``predict`` returns probabilities.

    After ``seed_everything(n)``, torch's generators are reseeded from (n, epoch) before the first batch of every
    training epoch, so that dropout and the like do not depend on how often the run was restarted.

    Checkpoints store the arguments as plain values and load with ``weights_only=True``. Arguments without a plain form
    (a network given as a module, an optimizer given as a lambda) are left out of ``hparams``: pass them to
    ``load_from_checkpoint``.

    Args:
        network: Dotted path of a class or function ("lightning_fold.models.CifarResNet"), a timm model name
            ("resnet18"), or a module.
        network_args: Keyword arguments for the network; ``num_classes`` is added if the network takes it.
        num_classes: Number of classes, at least 2.
        optimizer: Function from parameters to an optimizer; in YAML ``class_path`` and ``init_args``. None means
            ``torch.optim.AdamW`` with its defaults.
        lr_scheduler: Function from an optimizer to a learning-rate schedule, stepped once per epoch; in YAML
            ``class_path`` and ``init_args``. ``ReduceLROnPlateau`` watches its ``monitor``, by default ``loss/val``.
        label_smoothing: Share of the target probability spread over all classes, in [0, 1).
        distillation: Weight in [0, 1] of a loss that compares the outputs with those of the network before its first
            rewrite; active from that rewrite on (Hinton et al. 2015, arXiv 1503.02531).
        temperature: Divides the logits of both networks in that loss, above 0.
        regularizers: Penalties on weights, like those of ``SmoothnessRegularization``; in YAML a list of
            ``class_path: lightning_fold.regularizers.Smoothness`` and ``init_args``. Dotted names begin with
            ``network.``.
        channels_last: Whether 2-D convolutions store channels as the last dimension in memory: faster on most GPUs with
            half precision, and for depthwise convolutions on CPUs.

    Raises:
        ArgumentError: num_classes, label_smoothing, distillation or temperature is out of range, or the network's name
            is unknown.
        ArgumentTypeError: network_args do not fit the network, or are given together with a module; regularizers is
            not a list of penalties.
    """

    size = "num_classes"

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
        channels_last: bool = False,
    ) -> None:
        super().__init__(own_arguments(locals()))
        self.num_classes = num_classes
        for module in self.network.modules() if channels_last else ():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.accuracy = nn.ModuleDict(
            {f"accuracy_{split}": accuracy_of(num_classes) for split in ("train", "val", "test")}
        )

    def update_metrics(self, split: str, logits: Tensor, targets: Tensor) -> dict[str, Metric]:
        """Update the accuracy of a split with logits ``(B, num_classes)`` and targets ``(B,)``."""
        accuracy = cast(MulticlassAccuracy, self.accuracy[f"accuracy_{split}"])
        accuracy.update(logits, targets)
        return {"accuracy": accuracy}


def accuracy_of(classes: int) -> MulticlassAccuracy:
    """A metric: the share of correct predictions."""
    return MulticlassAccuracy(classes, average="micro", validate_args=False)
