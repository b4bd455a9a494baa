"""What a run ends with: dense against compressed, as files, a table and ``compression.json``."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
from rich.table import Table
from torch import nn

from lightning_fold.checkpointing import follow, network_of
from lightning_fold.complexity import count_flops, count_parameters, measure_latency
from lightning_fold.modules import Classifier
from lightning_fold.serialization import load, save, write_atomically


@dataclass(frozen=True)
class Measurement:
    """One network, measured: accuracies are shares of 1, ``None`` without such data; the rest is for one example."""

    test_accuracy: float | None
    val_accuracy: float | None
    parameters: int
    flops: int
    bytes: int
    latency_ms: float


@dataclass(frozen=True)
class Summary:
    """Dense against compressed, and the files of the run."""

    dense: Measurement
    compressed: Measurement
    methods: list[dict[str, Any]]
    files: dict[str, str]

    @property
    def factor(self) -> float:
        """Compression factor: parameters before divided by parameters after."""
        return self.dense.parameters / self.compressed.parameters

    def table(self) -> Table:
        """The comparison, for the terminal."""
        table = Table("", "dense", "compressed", "", title=f"{self.factor:.1f}x smaller", title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        dense, small = self.dense, self.compressed
        for name, left, right in (
            ("validation accuracy", dense.val_accuracy, small.val_accuracy),
            ("test accuracy", dense.test_accuracy, small.test_accuracy),
        ):
            if left is not None and right is not None:
                table.add_row(name, f"{left:.2%}", f"{right:.2%}", f"{100 * (right - left):+.2f} points")
        for name, left, right in (
            ("parameters", dense.parameters, small.parameters),
            ("FLOPs per example", dense.flops, small.flops),
            ("file size in bytes", dense.bytes, small.bytes),
        ):
            table.add_row(name, f"{left:,}", f"{right:,}", f"{left / max(right, 1):.1f}x")
        row = (f"{dense.latency_ms:.3f}", f"{small.latency_ms:.3f}", f"{dense.latency_ms / small.latency_ms:.1f}x")
        table.add_row("ms per example", *row)
        return table

    def places(self) -> str:
        """Where the files lie."""
        width = max(map(len, self.files))
        return "\n".join(f"{name:<{width}}  {place}" for name, place in self.files.items())


def summarise_run(
    trainer: lightning.Trainer, module: lightning.LightningModule, datamodule: lightning.LightningDataModule | None
) -> Summary | None:
    """Write the dense and the compressed network of a finished ``fit`` and measure both as they load from their files.

    Every process of a distributed run must call it; the first one writes the files.

    Args:
        trainer: the trainer after ``fit``.
        module: the LightningModule that was trained; its hyper-parameters must name the network.
        datamodule: the data, with a validation and a test loader.

    Returns:
        The summary, also written as ``compression.json``; ``None`` where the network has no name to load it by.

    Raises:
        OSError: a file cannot be written.
    """
    name, arguments = module.hparams.get("network"), module.hparams.get("network_args")
    if not isinstance(module, Classifier) or not isinstance(name, str) or datamodule is None:
        return None
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    record, network = follow(module), network_of(module)
    networks = {"dense": record.dense.network_like(network) if record.dense else network, "compressed": network}
    files, measured = {}, {}
    for kind, each in networks.items():
        files[kind] = folder / f"{kind}.pt"
        if trainer.is_global_zero:
            save(each, files[kind], network=name, network_args=_network_args(module, arguments))
        trainer.strategy.barrier()
        measured[kind] = _measure(trainer, module, datamodule, files[kind])
    checkpoint = folder / "checkpoints" / "compressed.ckpt"
    trainer.save_checkpoint(checkpoint, weights_only=False)
    places = {
        "compressed network": files["compressed"],
        "dense network": files["dense"],
        "checkpoint": checkpoint,
        "summary": folder / "compression.json",
        "TensorBoard logs": folder,
    }
    summary = Summary(**measured, methods=record.methods, files={key: str(place) for key, place in places.items()})
    if trainer.is_global_zero:
        write_atomically(json.dumps(asdict(summary), indent=2) + "\n", folder / "compression.json")
        _log(trainer, summary.compressed.test_accuracy)
    return summary


def _log(trainer: lightning.Trainer, accuracy: float | None) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({} if accuracy is None else {"accuracy/test": accuracy}, step=trainer.global_step)
        logger.save()


def _network_args(module: lightning.LightningModule, arguments: dict[str, Any] | None) -> dict[str, Any]:
    from lightning_fold.models.factory import accepted_arguments, find_builder

    takes_classes = "num_classes" in accepted_arguments(find_builder(module.hparams["network"]))
    extra = {"num_classes": module.hparams["num_classes"]} if takes_classes else {}
    return {**extra, **(arguments or {})}


def _measure(
    trainer: lightning.Trainer, module: lightning.LightningModule, datamodule: lightning.LightningDataModule, path: Path
) -> Measurement:
    network = load(path)
    with _in_place(module, network), _without_remarks():
        quiet = lightning.Trainer(
            accelerator="cpu" if module.device.type == "cpu" else module.device.type,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=trainer.limit_val_batches,
            limit_test_batches=trainer.limit_test_batches,
        )
        val = dict(*quiet.validate(module, datamodule=datamodule, verbose=False))
        test = dict(*quiet.test(module, datamodule=datamodule, verbose=False))
    example = next(iter(datamodule.test_dataloader()))[0][:1]
    network = network.cpu()
    return Measurement(
        test_accuracy=test.get("accuracy/test"),
        val_accuracy=val.get("accuracy/val"),
        parameters=count_parameters(network),
        flops=count_flops(network, example),
        bytes=path.stat().st_size,
        latency_ms=1000 * measure_latency(network, example),
    )


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep Lightning from naming the hardware and the limits again for every measurement."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class _in_place:
    """The network of a LightningModule replaced by another inside a ``with`` block."""

    def __init__(self, module: lightning.LightningModule, network: nn.Module) -> None:
        parent, _, leaf = follow(module).network.rpartition(".")
        self.owner, self.leaf, self.network = module.get_submodule(parent), leaf, network

    def __enter__(self) -> None:
        self.original = getattr(self.owner, self.leaf)
        setattr(self.owner, self.leaf, self.network)

    def __exit__(self, *error: Any) -> None:
        setattr(self.owner, self.leaf, self.original)
