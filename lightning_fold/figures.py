"""Figures of a compression: layer widths over the epochs, spectra of the weights, accuracy against size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

_STEPS = (1, 2, 3, 5, 7)  # labels within each decade of a logarithmic axis

History = Sequence[dict[str, Any]]


def width_figure(history: History) -> Figure:
    """A heat map of the width of every layer (rows) over the epochs (columns), as a share of its first width.

    Args:
        history: one dict per validation with ``epoch`` and ``widths`` (layer name -> number of outputs).
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
    bar = figure.colorbar(image, label="share of the first width", format=PercentFormatter(1, decimals=0))
    bar.ax.yaxis.set_major_locator(LogLocator(subs=_STEPS))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure


def accuracy_figure(history: History) -> Figure:
    """Accuracy against the number of parameters, one point per validation, coloured by epoch.

    Args:
        history: one dict per validation with ``epoch``, ``parameters`` and ``accuracy``.
    """
    rows = [row for row in history if "accuracy" in row]
    parameters = [row["parameters"] for row in rows]
    accuracy = [row["accuracy"] for row in rows]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(parameters, accuracy, color="0.8", linewidth=1, zorder=1)
    points = axes.scatter(parameters, accuracy, c=[row["epoch"] for row in rows], cmap="viridis", zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=_STEPS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("parameters")
    axes.set_ylabel("validation accuracy")
    axes.grid(alpha=0.3)
    figure.colorbar(points, label="epoch", ticks=MaxNLocator(integer=True))
    return figure


def spectrum_figure(networks: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """The singular values of every weight, one panel per network, one line per layer.

    A line that falls fast belongs to a layer that a low-rank factorization compresses well. Layers are coloured from
    first to last.

    Args:
        networks: title -> state dict; floating-point tensors of at least two dimensions are read as matrices
            (outputs, everything else). Empty and non-finite tensors are left out; if there are any, the title also
            gives the total number of layers.
    """
    figure = Figure(figsize=(1 + 5 * len(networks), 4.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(networks), sharex=True, sharey=True))
    for axes, (title, state) in zip(panels, networks.items(), strict=True):
        layers = [tensor for tensor in state.values() if tensor.dim() > 1 and tensor.is_floating_point()]
        matrices = [tensor.detach().float().cpu().flatten(1) for tensor in layers if tensor.numel()]
        weights = [matrix for matrix in matrices if matrix.isfinite().all()]
        for index, weight in enumerate(weights):
            values = torch.linalg.svdvals(weight).numpy()
            shares = np.arange(len(values)) / max(len(values) - 1, 1)
            colour = colormaps["viridis"](index / max(len(weights) - 1, 1))
            axes.plot(shares, values / max(values[0], np.finfo(np.float32).tiny), color=colour, linewidth=1.2)
        share = "" if len(weights) == len(layers) else f" of {len(layers)}"
        axes.set_title(f"{title}, {len(weights)}{share} layers")
        axes.set_xlabel("place among the layer's singular values")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("singular value / largest one")
    panels[0].set_ylim(0, 1.02)
    colours = ScalarMappable(cmap="viridis")
    figure.colorbar(colours, ax=list(panels), label="layer", ticks=[0, 1]).ax.set_yticklabels(["first", "last"])
    return figure


def comparison_figure(networks: Mapping[str, Sequence[tuple[str, int, float]]], metric: str) -> Figure:
    """A metric against the number of parameters, one panel per network, one line per method.

    Args:
        networks: name -> points (method, parameters, metric); the method ``"dense"`` is drawn as a horizontal line.
        metric: name of the metric.
    """
    columns = min(len(networks), 3)
    rows = -(-len(networks) // columns)
    figure = Figure(figsize=(2.5 + 5.5 * columns, 4.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(networks) :]:
        axes.set_axis_off()
    methods = list(dict.fromkeys(method for points in networks.values() for method, *_ in points if method != "dense"))
    for axes, (name, points) in zip(panels, networks.items(), strict=False):
        for method in methods:
            line = sorted((parameters, value) for kind, parameters, value in points if kind == method)
            if line:
                axes.plot(*zip(*line, strict=True), label=method, **_style(method, methods))
        for _, parameters, value in (point for point in points if point[0] == "dense"):
            axes.axhline(value, color="0.7", linewidth=1, zorder=1)
            axes.plot(parameters, value, "k*", markersize=10, label="dense")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_title(name)
        axes.set_xlabel("parameters")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    known = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label for label in (*methods, "dense") if label in known]
    figure.legend([known[label] for label in labels], labels, loc="outside right upper")
    return figure


def _style(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """The line style of a rewrite: one colour each, dashed with hollow markers for additions ("fold + data")."""
    names = list(dict.fromkeys(name.partition(" + ")[0] for name in methods))
    name, _, addition = method.partition(" + ")
    colour = colormaps["tab10"](names.index(name) % 10)
    dashed = {"linestyle": "--", "markerfacecolor": "white"} if addition else {}
    return {"color": colour, "marker": "o", **dashed}


def _labels(layers: Sequence[str], first: np.ndarray, last: np.ndarray) -> list[str]:
    after = ["gone" if np.isnan(width) else f"{int(width)}" for width in last]
    return [f"{name} ({int(width)}, {end})" for name, width, end in zip(layers, first, after, strict=True)]
