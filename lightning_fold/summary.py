"""What a run ends with: dense against compressed, as files, a table and ``compression.json``."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
from rich.table import Table

from lightning_fold.checkpointing import follow, network_of
from lightning_fold.measurement import Measurement, latency_note, measure, side_by_side
from lightning_fold.modules.base import network_source
from lightning_fold.serialization import load, save, write_atomically


@dataclass(frozen=True)
class Summary:
    """Dense against compressed, and the files of the run.

    Attributes:
        dense, compressed: the two networks, measured as they load from their files.
        latency: how latency was measured, and ``share_of_flop_saving``: the share of the saving in operations that
            arrives as a saving in time, ``None`` where no operation was saved.
        methods: the rewrites that were done.
        files: what was written, and where.
    """

    dense: Measurement
    compressed: Measurement
    latency: dict[str, Any]
    methods: list[dict[str, Any]]
    files: dict[str, str]

    def table(self) -> Table:
        """The comparison, for the terminal."""
        return side_by_side(self.dense, self.compressed, self.latency, "dense", "compressed")

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
    name, arguments = network_source(module)
    if name is None or datamodule is None:
        return None
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    record, network = follow(module), network_of(module)
    networks = {"dense": record.dense.network_like(network) if record.dense else network, "compressed": network}
    example = next(iter(datamodule.val_dataloader()))[0][:1]
    limits = {name: getattr(trainer, name) for name in ("limit_val_batches", "limit_test_batches")}
    seed = os.environ.get("PL_GLOBAL_SEED")  # both see the same, whatever the data draws
    files, measured, latency = {}, {}, {}
    for kind, each in networks.items():
        files[kind] = folder / f"{kind}.pt"
        if trainer.is_global_zero:
            save(each, files[kind], network=name, network_args=arguments, example_inputs=example)
        trainer.strategy.barrier()
        size = files[kind].stat().st_size
        measured[kind], latency[kind] = measure(
            load(files[kind]),
            example,
            size,
            module,
            datamodule,
            trainer.strategy.root_device.type,
            seed=None if seed is None else int(seed),
            **limits,
        )
    checkpoint = folder / "checkpoints" / "compressed.ckpt"
    trainer.save_checkpoint(checkpoint, weights_only=False)
    places = {
        "compressed network": files["compressed"],
        "dense network": files["dense"],
        "checkpoint": checkpoint,
        "summary": folder / "compression.json",
        "TensorBoard logs": folder,
    }
    summary = Summary(
        **measured,
        latency=latency_note(measured["dense"], measured["compressed"], latency["compressed"]),
        methods=record.methods,
        files={key: str(place) for key, place in places.items()},
    )
    if trainer.is_global_zero:
        content = asdict(summary)
        content["metrics"] = {kind: content[kind].pop("metrics") for kind in networks}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / "compression.json", lambda partial: partial.write_text(text))
        _log(trainer, summary)
    return summary


def _log(trainer: lightning.Trainer, summary: Summary) -> None:
    dense, small = summary.dense, summary.compressed
    values = {
        "accuracy/test": small.test_accuracy,
        "compressed/accuracy": small.val_accuracy,
        "dense/accuracy": dense.val_accuracy,
        "latency/dense_ms": dense.latency_ms,
        "latency/compressed_ms": small.latency_ms,
        "latency/share_of_flop_saving": summary.latency["share_of_flop_saving"],
    }
    for logger in trainer.loggers:
        known = {name: value for name, value in values.items() if value is not None}
        logger.log_metrics(known, step=trainer.global_step)
        logger.save()
