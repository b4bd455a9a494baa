"""The three pictures of the README, from real runs on scikit-learn's digits.

    python -m benchmarks.readme_pictures

It trains configs/digits_resnet.yaml and configs/digits_mlp.yaml (about a minute each on two cores), compares the
methods on the dense network of the first, and writes docs/pictures/{widths,accuracy,terminal}.png. The runs are kept in
--runs and not repeated; delete that folder for new ones.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

REPOSITORY = Path(__file__).resolve().parents[1]
DPI, WIDTH = 120, 7.8  # 936 pixels
SIZES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)

# method in the CSV file -> label, color, marker
METHODS = {
    "factorize": ("low rank", "#1f6fb4", "o"),
    "fold-least-squares": ("folded, least squares", "#d1495b", "s"),
    "prune-least-squares": ("pruned by L2, least squares", "#2e8b57", "^"),
    "fold": ("folded", "#edae49", "D"),
    "prune": ("pruned by L2", "#7a6c9d", "v"),
}
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.6",
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titlepad": 12,
}
PAPER, DIM, BRIGHT, GREEN = "#0d1117", "#7d8590", "#e6edf3", "#3fb950"
BOX = "─━│┃┏┓┗┛┡┩┳╇┴└┘╋┼┌┐┬┤├╈╞╡╪"


def command(*words: str, cwd: Path) -> str:
    """The output of ``lightning-fold`` with these words.

    Raises:
        CalledProcessError: the command failed.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
    call = [sys.executable, "-c", "from lightning_fold.cli import main; main()", *words]
    return subprocess.run(call, cwd=cwd, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def trained(recipe: str, runs: Path) -> Path:
    """The folder of a run of the recipe, with its output in ``output.txt``."""
    folder = runs / recipe
    if not (folder / "output.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        output = command("fit", "--config", str(REPOSITORY / "configs" / f"{recipe}.yaml"), cwd=folder)
        (folder / "output.txt").write_text(output)
    return folder / "runs" / "version_0"


def compared(run: Path) -> list[dict[str, str]]:
    """The rows of ``compare`` on the dense network of a run."""
    sizes, methods = f"[{','.join(map(str, SIZES))}]", f"[{','.join(METHODS)}]"
    command("compare", "--checkpoint", str(run / "dense.pt"), "--methods", methods, "--sizes", sizes, cwd=run)
    with (run / "comparison" / "comparison.csv").open() as file:
        return list(csv.DictReader(file))


def history_of(run: Path) -> list[dict[str, Any]]:
    """What CompressionMonitor saw after each validation."""
    checkpoint = torch.load(run / "checkpoints" / "compressed.ckpt", weights_only=True)
    return next(state["history"] for name, state in checkpoint["callbacks"].items() if "CompressionMonitor" in name)


def draw_widths(run: Path) -> Figure:
    """The channels of every layer after each cycle: a row for each cycle, a column for each layer."""
    history = history_of(run)
    layers = list(history[0]["widths"])
    stages = [list(rows)[-1] for _, rows in groupby(history, key=lambda row: row["parameters"])]
    stages = [stage for stage in stages if set(stage["widths"]) <= set(layers)]  # before low rank splits layers
    widths = torch.tensor([[stage["widths"].get(layer, 0) for layer in layers] for stage in stages])
    figure = Figure(figsize=(WIDTH, 1.75 + 0.36 * len(stages)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(widths / widths[0], cmap="YlGnBu", vmin=0, vmax=1.3, aspect="auto")
    lines: dict[str, Any] = {"color": "white", "linewidth": 1.5}
    axes.hlines(torch.arange(1, len(stages)) - 0.5, -0.5, len(layers) - 0.5, **lines)
    axes.vlines(torch.arange(1, len(layers)) - 0.5, -0.5, len(stages) - 0.5, **lines)
    for row, column in torch.cartesian_prod(torch.arange(len(stages)), torch.arange(len(layers))).tolist():
        share = float(widths[row, column] / widths[0, column])
        color = "white" if share > 0.7 else "0.15"
        axes.text(column, row, str(int(widths[row, column])), ha="center", va="center", fontsize=9, color=color)
    names = ["dense", *(f"after cycle {cycle}" for cycle in range(1, len(stages)))]
    axes.set_yticks(range(len(stages)), names, fontsize=9.5)
    axes.set_xticks(range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor", fontsize=8.5)
    right = axes.secondary_yaxis("right")
    sizes = [f"{stage['parameters']:,} parameters\n{stage['accuracy']:.1%} validation accuracy" for stage in stages]
    right.set_yticks(range(len(stages)), sizes, fontsize=8)
    for side in (axes, right):
        side.tick_params(length=0)
        side.spines[:].set_visible(False)
    axes.set_title("Channels of each layer over the cycles (ResNet-14 on handwritten digits)")
    return figure


def draw_accuracy(rows: list[dict[str, str]], run: Path) -> Figure:
    """Accuracy against size: a line for each method, a star for the run that shrank in training."""
    dense = next(row for row in rows if row["method"] == "dense")
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, (label, color, marker) in METHODS.items():
        points = sorted(point(row, dense) for row in [dense, *(row for row in rows if row["method"] == name)])
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5, linewidth=1.8, label=label)
    summary = json.loads((run / "compression.json").read_text())
    end = summary["compressed"]["parameters"] / summary["dense"]["parameters"]
    accuracy = summary["metrics"]["compressed"]["accuracy/test"]
    axes.plot(
        end, accuracy, "*", color="#111111", markersize=14, label="shrunk while training (Squeeze-Release, low rank)"
    )
    axes.set(xlabel="parameters kept", ylabel="test accuracy", xlim=(0, 1.03), ylim=(0, 1.04))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(color="0.92")
    axes.legend(
        frameon=False, loc="lower right", title="lines: dense network rewritten, no training after it", alignment="left"
    )
    axes.set_title("Accuracy against size (ResNet-14 on handwritten digits)")
    return figure


def point(row: dict[str, str], dense: dict[str, str]) -> tuple[float, float]:
    """Share of the parameters and accuracy of a row."""
    return int(row["parameters"]) / int(dense["parameters"]), float(row["accuracy"])


def draw_terminal(run: Path) -> Figure:
    """The last lines of the output of ``fit``, as a terminal shows them."""
    lines = [line.rstrip() for line in (run.parents[1] / "output.txt").read_text().splitlines()]
    start = next(number for number, line in enumerate(lines) if line.endswith("x smaller"))
    shown = ["$ lightning-fold fit --config configs/digits_mlp.yaml", "...", *lines[start - 3 :]]
    size, pitch = 8.6, 8.6 * 1.164 / 72  # points; the height of a line in inches
    figure = Figure(figsize=(WIDTH, pitch * (len(shown) + 2.3)), facecolor=PAPER)
    height = figure.get_figheight()
    for number, line in enumerate(shown):
        color = GREEN if line.endswith("x smaller") else BRIGHT
        frame = "".join(letter if letter in BOX else " " for letter in line)
        words = "".join(" " if letter in BOX else letter for letter in line)
        for text, shade in ((frame, DIM), (words, color)):
            place = (0.22 / WIDTH, 1 - pitch * (number + 2.05) / height)
            figure.text(
                *place, text, color=shade, family="DejaVu Sans Mono", size=size, va="baseline", parse_math=False
            )
    return figure


def main() -> None:
    """Run what has not run, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "pictures", help="folder of the runs")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "pictures", help="folder of the pictures")
    arguments = parser.parse_args()
    resnet, mlp = (trained(recipe, arguments.runs.absolute()) for recipe in ("digits_resnet", "digits_mlp"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        pictures = {
            "widths": draw_widths(resnet),
            "accuracy": draw_accuracy(compared(resnet), resnet),
            "terminal": draw_terminal(mlp),
        }
        for name, figure in pictures.items():
            figure.savefig(arguments.output / f"{name}.png", dpi=DPI)


if __name__ == "__main__":
    main()
