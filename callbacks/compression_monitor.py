"""CompressionMonitor: logs the network's size and accuracy at every epoch and shows them in the progress bar."""

from argparse import Namespace
from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import nn
from torch.utils.tensorboard.summary import hparams

from lightning_fold.callbacks.loop.inputs import network_inputs
from lightning_fold.callbacks.loop.run import CompressionRun
from lightning_fold.callbacks.rewriting.base import RewriteCallback, is_compressed
from lightning_fold.complexity import count_flops, count_parameters
from lightning_fold.figures import accuracy_figure, spectrum_figure, width_figure
from lightning_fold.inputs import Inputs, device_of, first_examples, on_device
from lightning_fold.regularizers import Smoothness
from lightning_fold.rewrites.sparsity.sparsify import sparsity_of
from lightning_fold.storage.checkpoints import record_of

_FINAL_TAGS = (
    *("compressed/accuracy", "dense/accuracy", "accuracy/test", "compression/factor", "compression/parameters"),
    *("compression/flops", "latency/compressed_ms", "latency/dense_ms"),
)


class CompressionMonitor(lightning.Callback):
    """Logs the size and accuracy of the network as it shrinks; it never changes the network.

    After each validation it logs ``compression/{parameters,flops,factor,sparsity}``, ``compressed/accuracy`` (once the
    network has its final shapes) and ``dense/accuracy`` (of the network before its first rewrite). The progress bar
    shows the parameters (in thousands) and the factor. FLOPs are for one example, 2 per multiply-add.

    At the end of training, every logger that accepts figures gets three: the width of each layer over the epochs, the
    singular values of the weights, and accuracy against parameters. TensorBoard also gets its hyper-parameter page,
    with the callbacks' settings and the final metrics, unless its logger has already written one
    (``TensorBoardLogger(default_hp_metric=False)`` does not).

    Args:
        module: dotted path of the network inside the LightningModule; empty finds it.
        monitor: name of the logged validation metric to show as accuracy.
    """

    def __init__(self, module: str = "", monitor: str = "accuracy/val") -> None:
        self.module = module
        self.monitor = monitor
        self.history: list[dict[str, Any]] = []
        self._example: Inputs | None = None
        self._flops: tuple[int, int] = (-1, 0)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Find the network."""
        record_of(pl_module, self.module)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep one example for counting FLOPs."""
        if self._example is None:
            self._example = first_examples(network_inputs(pl_module, batch, batch_idx), 1)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the size in the progress bar."""
        if batch_idx == 0:
            shown = _in_progress_bar(self._sizes(CompressionRun(trainer, pl_module)))
            pl_module.log_dict(shown, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log and show the size of the network; no training batch follows a rewrite at the end."""
        run = CompressionRun(trainer, pl_module)
        if run.fitting:
            sizes = self._all_sizes(run)
            pl_module.log_dict(sizes)
            pl_module.log_dict(_in_progress_bar(sizes), prog_bar=True, logger=False)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the accuracy at this size and keep it for the figures."""
        run = CompressionRun(trainer, pl_module)
        if not run.fitting:
            return
        network, dense = run.network, run.dense
        accuracy = trainer.callback_metrics.get(self.monitor)
        row = {"epoch": run.epoch, "parameters": count_parameters(network), "widths": layer_widths(network)}
        metrics = {}
        if accuracy is not None:
            row["accuracy"] = float(accuracy)
            if is_compressed(run):
                metrics["compressed/accuracy"] = float(accuracy)
        if dense is not None and self.monitor in dense.metrics:
            metrics["dense/accuracy"] = dense.metrics[self.monitor]
        self.history.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the final size of the network, draw the figures and fill in the hyper-parameter page."""
        if not self.history or not trainer.is_global_zero:  # the loggers of other processes are dummies
            return
        run = CompressionRun(trainer, pl_module)
        sizes, step = self._all_sizes(run), trainer.global_step
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            logger.log_metrics(sizes, step=step)
        boards = [logger for logger in loggers if hasattr(logger.experiment, "add_figure")]
        figures = self._figures(run) if boards else {}
        for logger in boards:
            for name, figure in figures.items():
                logger.experiment.add_figure(f"compression/{name}", figure, step)
            if isinstance(logger, TensorBoardLogger):
                done = dict.fromkeys(method["method"] for method in run.record.methods)
                fill_page(logger, settings(run.callbacks) | {"rewrites": ", ".join(done)})

    def state_dict(self) -> dict[str, Any]:
        """The history so far."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history of an interrupted run."""
        self.history = list(state_dict["history"])

    def _figures(self, run: CompressionRun) -> dict[str, Figure]:
        network, dense = run.network, run.dense
        states = {"dense": dense.state_dict} if dense is not None else {}
        states["as it ends"] = network.state_dict()
        buffers = {name for name, _ in network.named_buffers()}  # tables and masks, not weights
        weights = {
            title: {name: tensor for name, tensor in state.items() if name not in buffers}
            for title, state in states.items()
        }
        figures = {"widths": width_figure(self.history), "spectra": spectrum_figure(weights)}
        return figures | ({"accuracy": accuracy_figure(self.history)} if "accuracy" in self.history[-1] else {})

    def _sizes(self, run: CompressionRun) -> dict[str, float]:
        network, dense = run.network, run.dense
        parameters = count_parameters(network)
        before = dense.parameters if dense is not None else parameters
        return {
            "compression/parameters": float(parameters),
            "compression/factor": before / max(parameters, 1),
            "compression/sparsity": sparsity_of(network),
        }

    def _all_sizes(self, run: CompressionRun) -> dict[str, float]:
        if self._example is None:
            return self._sizes(run)
        return self._sizes(run) | {"compression/flops": float(self._count_flops(run.network))}

    def _count_flops(self, network: nn.Module) -> int:
        assert self._example is not None
        parameters = count_parameters(network)
        if self._flops[0] != parameters:
            self._flops = (parameters, count_flops(network, on_device(self._example, device_of(network))))
        return self._flops[1]


def _in_progress_bar(sizes: dict[str, float]) -> dict[str, float]:
    return {"kparams": sizes["compression/parameters"] / 1000, "factor": sizes["compression/factor"]}


def fill_page(logger: TensorBoardLogger, extra: dict[str, Any]) -> None:
    """Write TensorBoard's hyper-parameter page: the logger's values, ``extra``, and the final values of some tags.

    TensorBoard keeps only the first page of a run, so ``TensorBoardLogger`` must not have written one already.
    """
    given = logger.hparams
    known = flatten(vars(given) if isinstance(given, Namespace) else given) | extra
    for summary in hparams(known, dict.fromkeys(_FINAL_TAGS, 0.0)):  # TensorBoard reads the values from the tags
        logger.experiment.file_writer.add_summary(summary)


def settings(callbacks: Iterable[Any]) -> dict[str, Any]:
    """The constructor arguments of every callback that compresses or regularizes, as ``SqueezeRelease/cycles``.

    The second callback of a class is named ``ChannelFolding 2``.
    """
    found = {}
    for callback in callbacks:
        if isinstance(callback, (RewriteCallback, Smoothness)):
            values = ((name, getattr(callback, name, "")) for name in signature(type(callback)).parameters)
            kind = type(callback).__name__
            number = 1 + sum(key.partition(" ")[0] == kind for key in found)
            found[kind if number == 1 else f"{kind} {number}"] = {name: value for name, value in values if value != ""}
    return flatten(found)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings, joining keys by ``/``; drop private keys and ``None``, turn other objects into text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif value is not None and not key.startswith("_"):
            flat[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def layer_widths(network: nn.Module) -> dict[str, int]:
    """The number of outputs of every linear layer and convolution, by dotted name."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return {
        name or type(module).__name__: module.weight.shape[0]
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    }
