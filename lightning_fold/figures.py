"""The two pictures of a compression: widths over the epochs, accuracy against size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

History = Sequence[dict[str, Any]]


def width_figure(history: History) -> Figure:
    """A heat map of the width of every layer (rows) over the epochs (columns), as a share of its first width.

    Args:
        history: for each validation a dict with ``epoch`` and ``widths`` (layer name -> number of outputs).
    """
    layers = list(dict.fromkeys(layer for row in history for layer in row["widths"]))
    widths = np.array([[row["widths"].get(layer, np.nan) for row in history] for layer in layers], dtype=float)
    first = np.array([line[~np.isnan(line)][0] for line in widths])
    figure = Figure(figsize=(8, 1.5 + 0.28 * len(layers)), layout="constrained")
    axes = figure.subplots()
    shares = widths / first[:, None]
    scale = LogNorm(min(0.1, float(np.nanmin(shares))), 1)
    image = axes.imshow(shares, aspect="auto", norm=scale, cmap="viridis", interpolation="none")
    axes.set_yticks(range(len(layers)), _labels(layers, first, widths[:, -1]), fontsize=8)
    ticks = np.unique(np.linspace(0, len(history) - 1, min(len(history), 10)).astype(int))
    axes.set_xticks(ticks, [str(history[tick]["epoch"]) for tick in ticks])
    axes.set_xlabel("epoch")
    axes.set_title("width of each layer (first, last)")
    figure.colorbar(image, label="share of the first width")
    return figure


def accuracy_figure(history: History) -> Figure:
    """Accuracy against the number of parameters, one point for each validation, coloured by epoch.

    Args:
        history: for each validation a dict with ``epoch``, ``parameters`` and ``accuracy``.
    """
    rows = [row for row in history if "accuracy" in row]
    parameters = [row["parameters"] for row in rows]
    accuracy = [row["accuracy"] for row in rows]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(parameters, accuracy, color="0.8", linewidth=1, zorder=1)
    points = axes.scatter(parameters, accuracy, c=[row["epoch"] for row in rows], cmap="viridis", zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("parameters")
    axes.set_ylabel("validation accuracy")
    axes.grid(alpha=0.3)
    figure.colorbar(points, label="epoch")
    return figure


def _labels(layers: Sequence[str], first: np.ndarray, last: np.ndarray) -> list[str]:
    after = ["gone" if np.isnan(width) else f"{int(width)}" for width in last]
    return [f"{name} ({int(width)}, {end})" for name, width, end in zip(layers, first, after, strict=True)]
