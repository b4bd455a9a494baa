"""A LightningModule that trains any network to predict the next token."""

from typing import Any, cast

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.text import Perplexity

from lightning_fold.modules.base import NetworkModule, own_arguments
from lightning_fold.modules.classifier import accuracy_of
from lightning_fold.regularizers import Smoothness


class LanguageModel(NetworkModule):
    """Trains a network to predict the next token, by cross-entropy.

    Batches are ``(tokens, targets)``, both ``(B, T)`` int64; targets are the next tokens. The network, kept as
    ``self.network``, maps tokens to ``(B, T, vocab_size)`` logits. Logs ``loss/{train,val,test}`` (nats per token),
    ``perplexity/{train,val,test}`` and ``accuracy/{train,val,test}`` (share of tokens predicted correctly, in
    [0, 1]) per epoch. ``predict`` returns probabilities.

    Seeds, checkpoints and rewrites work as in ``Classifier``.

    Args:
        network: Dotted path of a class or function ("lightning_fold.models.CausalTransformer"), or a module.
        network_args: Keyword arguments for the network; ``vocab_size`` is added if the network takes it.
        vocab_size: Number of tokens, at least 2; 256 if tokens are bytes.
        optimizer: Function from parameters to an optimizer; in YAML ``class_path`` and ``init_args``. None means
            ``torch.optim.AdamW`` with its defaults.
        lr_scheduler: Function from an optimizer to a learning-rate schedule, stepped once per epoch; in YAML
            ``class_path`` and ``init_args``. ``ReduceLROnPlateau`` watches its ``monitor``, by default ``loss/val``.
        label_smoothing: Share of the target probability spread over all tokens, in [0, 1).
        distillation: Weight in [0, 1] of a loss that compares the outputs with those of the network before its first
            rewrite; active from that rewrite on (Hinton et al. 2015, arXiv 1503.02531).
        temperature: Divides the logits of both networks in that loss, above 0.
        regularizers: Penalties on weights, like those of ``SmoothnessRegularization``; in YAML a list of
            ``class_path: lightning_fold.regularizers.Smoothness`` and ``init_args``. Dotted names begin with
            ``network.``.

    Raises:
        ArgumentError: vocab_size, label_smoothing, distillation or temperature is out of range, or the network's name
            is unknown; in ``setup``, the data has more tokens than vocab_size.
        ArgumentTypeError: network_args do not fit the network, or are given together with a module; regularizers is
            not a list of penalties.
    """

    size = "vocab_size"

    def __init__(
        self,
        network: str | nn.Module = "lightning_fold.models.CausalTransformer",
        network_args: dict[str, Any] | None = None,
        vocab_size: int = 256,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        distillation: float = 0.0,
        temperature: float = 3.0,
        regularizers: list[Smoothness] | None = None,
    ) -> None:
        super().__init__(own_arguments(locals()))
        self.vocab_size = vocab_size
        splits = ("train", "val", "test")
        self.accuracy = nn.ModuleDict({f"accuracy_{split}": accuracy_of(vocab_size) for split in splits})
        self.perplexity = nn.ModuleDict({f"perplexity_{split}": Perplexity() for split in splits})

    def update_metrics(self, split: str, logits: Tensor, targets: Tensor) -> dict[str, Metric]:
        """Update the metrics of a split with logits ``(B, T, vocab_size)`` and targets ``(B, T)``."""
        accuracy = cast(Metric, self.accuracy[f"accuracy_{split}"])
        perplexity = cast(Perplexity, self.perplexity[f"perplexity_{split}"])
        accuracy.update(logits.flatten(0, -2), targets.flatten())
        perplexity.update(logits.float(), targets)
        return {"accuracy": accuracy, "perplexity": perplexity}
