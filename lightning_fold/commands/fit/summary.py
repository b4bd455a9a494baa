"""The summary of a run, dense against compressed: files, a table and ``compression.json``."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
from rich.table import Table
from torch import nn

from lightning_fold.callbacks.loop.batches import training_batches
from lightning_fold.callbacks.loop.inputs import network_inputs
from lightning_fold.evaluation.measurement import Measurement, latency_note, measure, side_by_side
from lightning_fold.inputs import first_examples
from lightning_fold.modules.base import network_source
from lightning_fold.storage.checkpoints import network_of, record_of
from lightning_fold.storage.files import load, save, write_atomically


@dataclass(frozen=True)
class Summary:
    """The dense and the compressed network, measured, and the files of the run.

    Attributes:
        dense, compressed: the measurements of the two networks, loaded from their files.
        latency: how latency was measured, and ``share_of_flop_saving``: the share of the saved operations that shows up
            as saved time; ``None`` if no operations were saved.
        methods: the rewrites, in order.
        files: the path of each file written.
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
        """The paths of the files, as text."""
        width = max(map(len, self.files))
        return "\n".join(f"{name:<{width}}  {place}" for name, place in self.files.items())


def summarise_run(
    trainer: lightning.Trainer, module: lightning.LightningModule, datamodule: lightning.LightningDataModule | None
) -> Summary | None:
    """Write the dense and the compressed network of a finished ``fit``, load both files and measure them.

    Every process of a distributed run must call it; the first one writes the files.

    Args:
        trainer: the trainer after ``fit``.
        module: the LightningModule that was trained; its hyper-parameters must name the network.
        datamodule: the data; splits without a loader are not measured.

    Returns:
        The summary, also written as ``compression.json``; ``None`` if nothing was trained or the network has no name
        to load it by.

    Raises:
        FileError: a file cannot be written.
    """
    name, arguments = network_source(module)
    batches = training_batches(trainer, module, 1)
    if name is None or datamodule is None or not batches:
        return None
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    example = first_examples(network_inputs(module, batches[0], 0), 1)
    networks = _dense_and_compressed(module)
    files = {kind: folder / f"{kind}.pt" for kind in networks}
    for kind, network in networks.items() if trainer.is_global_zero else ():
        save(network, files[kind], network=name, network_args=arguments, example_inputs=example)
    checkpoint = folder / "checkpoints" / "compressed.ckpt"
    trainer.save_checkpoint(checkpoint, weights_only=False)
    trainer.strategy.barrier()  # if the measurement fails, the files are there
    limits: dict[str, Any] = {name: getattr(trainer, name) for name in ("limit_val_batches", "limit_test_batches")}
    if seed := os.environ.get("PL_GLOBAL_SEED"):
        limits["seed"] = int(seed)  # both see the same data, even if it is drawn at random
    measured, latency = {}, {}
    for kind, file in files.items():
        size, device = file.stat().st_size, trainer.strategy.root_device.type
        measured[kind], latency[kind] = measure(load(file), example, size, module, datamodule, device, **limits)
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
        methods=record_of(module).methods,
        files={key: str(place) for key, place in places.items()},
    )
    if trainer.is_global_zero:
        content = asdict(summary)
        content["metrics"] = {kind: content[kind].pop("metrics") for kind in files}
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / "compression.json", lambda partial: partial.write_text(text))
        _log(trainer, summary)
    return summary


def _dense_and_compressed(module: lightning.LightningModule) -> dict[str, nn.Module]:
    """The network before the first rewrite and now."""
    dense, network = record_of(module).dense, network_of(module)
    return {"dense": dense.network_like(network) if dense is not None else network, "compressed": network}


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
