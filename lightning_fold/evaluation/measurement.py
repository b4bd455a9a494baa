"""Measures one network and shows two measurements side by side."""

from dataclasses import dataclass
from typing import Any

import lightning
from rich.table import Table
from torch import nn

from lightning_fold.complexity import Latency, arrived_saving, count_flops, count_parameters, measure_latency
from lightning_fold.evaluation.evaluate import evaluate
from lightning_fold.inputs import Inputs, as_inputs

_RUNS = 100  # timed passes: enough for a stable median even if a pass takes microseconds


@dataclass(frozen=True)
class Measurement:
    """The measurements of one network. Accuracies are shares of 1, or ``None`` without such data.

    FLOPs and latency are for one example. ``metrics`` holds all values that the LightningModule logs, such as
    ``accuracy/val`` or ``perplexity/test``.
    """

    test_accuracy: float | None
    val_accuracy: float | None
    parameters: int
    flops: int
    bytes: int
    latency_ms: float
    metrics: dict[str, float]


def measure(
    network: nn.Module,
    inputs: Inputs,
    size: int,
    module: lightning.LightningModule,
    datamodule: lightning.LightningDataModule | None,
    device: str = "cpu",
    *,
    seed: int | None = None,
    **limits: Any,
) -> tuple[Measurement, Latency]:
    """Measure ``network``; also return the latency with its conditions.

    Args:
        network: the network, on the CPU before and after.
        inputs: example inputs; only the first example is used.
        size: size of its file in bytes.
        module: the LightningModule that defines its metrics.
        datamodule: the data; ``None`` skips the metrics.
        device: device for timing and evaluation, for example "cpu" or "cuda".
        seed: as in :func:`lightning_fold.evaluation.evaluate.evaluate`.
        limits: arguments of ``lightning.Trainer``, for example ``limit_test_batches=2``.
    """
    metrics: dict[str, float] = {}
    if datamodule is not None:
        for split in ("val", "test"):
            metrics |= evaluate(module, network, datamodule, split, accelerator=device, seed=seed, **limits)
    example = tuple(value[:1] for value in as_inputs(inputs))
    flops = count_flops(network, example)
    latency = measure_latency(network.to(device), tuple(value.to(device) for value in example), runs=_RUNS)
    network.cpu()
    return Measurement(
        test_accuracy=metrics.get("accuracy/test"),
        val_accuracy=metrics.get("accuracy/val"),
        parameters=count_parameters(network),
        flops=flops,
        bytes=size,
        latency_ms=1000 * latency,
        metrics=metrics,
    ), latency


def latency_note(before: Measurement, after: Measurement, latency: Latency) -> dict[str, Any]:
    """How latency was measured, and the share of the saved operations that shows up as saved time."""
    arrived = arrived_saving((before.flops, after.flops), (before.latency_ms, after.latency_ms))
    return latency.conditions() | {"share_of_flop_saving": arrived}


def side_by_side(before: Measurement, after: Measurement, latency: dict[str, Any], left: str, right: str) -> Table:
    """Two measurements as a table for the terminal.

    Args:
        before: the larger network.
        after: the smaller one.
        latency: the result of :func:`latency_note`.
        left: heading of the column of ``before``.
        right: heading of the column of ``after``.
    """
    factor = before.parameters / max(after.parameters, 1)
    table = Table("", left, right, "", title=f"{factor:.1f}x smaller", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, old, new in (
        ("validation accuracy", before.val_accuracy, after.val_accuracy),
        ("test accuracy", before.test_accuracy, after.test_accuracy),
    ):
        if old is not None and new is not None:
            table.add_row(name, f"{old:.2%}", f"{new:.2%}", f"{100 * (new - old):+.2f} points")
    for name, old in before.metrics.items():
        if name in after.metrics and name not in ("accuracy/val", "accuracy/test") and "loss" not in name:
            new = after.metrics[name]
            table.add_row(name, f"{old:.4g}", f"{new:.4g}", f"{new - old:+.3g}")
    for name, old, new in (
        ("parameters", before.parameters, after.parameters),
        ("FLOPs per example", before.flops, after.flops),
        ("file size in bytes", before.bytes, after.bytes),
    ):
        table.add_row(name, f"{old:,}", f"{new:,}", f"{old / max(new, 1):.1f}x")
    old, new = before.latency_ms, after.latency_ms
    table.add_row("ms per example", f"{old:.3f}", f"{new:.3f}", f"{old / new:.1f}x")
    if (share := latency["share_of_flop_saving"]) is not None:
        conditions = "{device}, {dtype}, batch {batch}, threads: {threads}".format(**latency)
        arrives = f"{share:.0%}" if round(share, 2) > 0 else "none"
        table.caption = f"{arrives} of the saving in operations arrives as time\n({conditions})"
        table.caption_justify = "left"
    return table
