"""The results of a comparison, as a table for the terminal and as a plot."""

import re
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path
from typing import Literal

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Column, Table
from torch.utils.tensorboard import SummaryWriter

from lightning_fold.commands.rows import DENSE, Row
from lightning_fold.figures import comparison_figure

Mode = Literal["max", "min"]

_BEST = {"max": max, "min": min}
_SHARES = re.compile(r"acc(?![a-z])|accuracy|auroc|precision|recall|f1|iou(?![a-z])|top_?\d", re.IGNORECASE)


def tables_of(rows: Sequence[Row], mode: Mode = "max") -> list[RenderableType]:
    """One table for each network: methods in rows, sizes in columns, the best method at each size in bold.

    Failures, with their reasons, and short notes of the methods follow below the table.
    """
    found: list[RenderableType] = []
    for name, own in _by_network(rows).items():
        dense = next(row for row in own if row.trial.method == DENSE)
        if dense.failed:
            found.append(escape(f"{name}: {dense.note}"))
            continue
        others = [row for row in own if row is not dense]
        sizes = sorted({row.trial.keep for row in others}, reverse=True)
        found.append(escape(f"{name}: {dense.parameters:,} parameters, {dense.trial.monitor} {_shown(dense)}"))
        headings = [f"{_percent(size)} of the {dense.trial.of}" for size in sizes]
        table = Table(Column("method", no_wrap=True), *headings)
        for method in dict.fromkeys(map(_method, others)):
            cells = {row.trial.keep: _cell(row, others, mode) for row in others if _method(row) == method}
            table.add_row(method, *(cells.get(size, "") for size in sizes))
        found.append(table)
        found += map(escape, _notes(others))
    return found


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write the plot of the metric against parameters as ``comparison.png`` and for TensorBoard.

    Raises:
        OSError: the files cannot be written.
    """
    figure = comparison_figure(
        {name: points for name, own in _by_network(rows).items() if (points := _points(own))}, rows[0].trial.monitor
    )
    figure.savefig(folder / "comparison.png", dpi=150)
    with SummaryWriter(str(folder)) as writer:
        writer.add_figure("comparison", figure)


def _by_network(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each network, by its file's path relative to the common folder of all."""
    files = list(dict.fromkeys(row.trial.checkpoint for row in rows))
    top = commonpath([Path(file).parent for file in files])
    return {str(Path(file).relative_to(top)): [row for row in rows if row.trial.checkpoint == file] for file in files}


def _method(row: Row) -> str:
    repair = row.trial.repair
    return row.trial.method + {"default": "", "none": " without repair"}.get(repair, f" + {repair}")


def _cell(row: Row, rows: Sequence[Row], mode: Mode) -> str:
    if row.accuracy is None:
        return "-"
    best = _BEST[mode](r.accuracy for r in rows if r.trial.keep == row.trial.keep and r.accuracy is not None)
    text = _shown(row)
    return f"{f'[bold]{text}[/bold]' if row.accuracy == best else text}  [dim]{row.parameters:,}[/dim]"


def _shown(row: Row) -> str:
    """The metric, in per cent if its name says that it is a share."""
    value = row.accuracy
    if value is None:
        return "-"
    return f"{value:.2%}" if 0 <= value <= 1 and _SHARES.search(row.trial.monitor) else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def _notes(rows: Sequence[Row]) -> list[str]:
    """Each note once, after the rows that have it; details after a colon are cut, reasons of failures are complete."""
    found: dict[str, list[str]] = {}
    for row in rows:
        notes = [row.note] if row.failed else [note.partition(": ")[0] for note in row.note.split("; ") if note]
        for note in notes:
            found.setdefault(note, []).append(f"{_method(row)} at {_percent(row.trial.keep)}")
    return [f"{', '.join(places)}: {note}" for note, places in found.items()]


def _points(rows: Sequence[Row]) -> list[tuple[str, int, float]]:
    return [(_method(row), row.parameters, row.accuracy) for row in rows if row.accuracy is not None]
