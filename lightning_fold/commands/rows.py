"""Trials to compare, rows of results, and the CSV file that stores them."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from lightning_fold.errors import ArgumentError
from lightning_fold.storage.files import write_atomically

DENSE = "dense"


@dataclass(frozen=True)
class Trial:
    """One measurement to make: one network, one method, one size. Equal trials give equal rows.

    Attributes:
        checkpoint: the network's file.
        digest: hash of the file's content and its data configuration, without the seed: a run has only one.
        method: a key of ``METHODS`` or the path of a class or function, or ``"dense"``.
        keep: share to keep, in (0, 1].
        of: what ``keep`` is a share of: "parameters" or "flops" of the network, or "channels" of every width.
        skip: patterns of layers whose widths are kept, separated by spaces.
        repair: the repair, as in :func:`lightning_fold.commands.methods.apply`.
        split: ``"val"`` or ``"test"``.
        monitor: the metric.
        limit: number of batches to measure on; 0 means all.
    """

    checkpoint: str
    digest: str
    method: str
    keep: float
    of: str
    skip: str
    repair: str
    split: str
    monitor: str
    limit: int

    @property
    def key(self) -> tuple[Any, ...]:
        """The values that identify the trial: all but the file's name."""
        return tuple(vars(self).values())[1:]

    @property
    def dense(self) -> "Trial":
        """The trial that measures the same network unchanged."""
        return replace(self, method=DENSE, keep=1.0, repair="none")


@dataclass(frozen=True)
class Row:
    """A trial and its result.

    Attributes:
        trial: the trial measured.
        parameters, share, flops: size of the rewritten network; ``share`` is its share of the dense parameters.
        accuracy: the metric; ``None`` if the trial failed.
        seconds: duration of the rewrite.
        note: the reason of the failure, or the method's notes.
    """

    trial: Trial
    parameters: int = 0
    share: float = 0.0
    flops: int = 0
    accuracy: float | None = None
    seconds: float = 0.0
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether the trial failed; ``note`` then holds the reason."""
        return self.accuracy is None


def read_rows(table: Path) -> list[Row]:
    """The rows of a CSV file; empty if there is no file.

    Raises:
        ArgumentError: the file is not a table of ``compare``.
    """
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or set(reader.fieldnames) != set(_COLUMNS):
            raise ArgumentError(f"{str(table)!r} is not a table of compare. Give another folder with --output.")
        return [_row(line) for line in reader]


def write_rows(rows: Iterable[Row], table: Path) -> None:
    """Write the CSV file; it is replaced only once the new one is complete.

    Rows written by another process are kept, unless they belong to the same trials.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_name(f".{table.name}.lock")):
        merged = {row.trial: row for row in read_rows(table)}
        merged |= {row.trial: row for row in rows if not row.failed or row.trial not in merged}
        lines = [asdict(row) for row in merged.values()]
        write_atomically(table, lambda partial: _write_lines(lines, partial))


def _write_lines(lines: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(line["trial"] | {name: line[name] for name in line if name != "trial"} for line in lines)


_TYPES = {field.name: field.type for kind in (Trial, Row) for field in fields(kind) if field.name != "trial"}
_COLUMNS = list(_TYPES)


def _row(line: dict[str, str]) -> Row:
    values: dict[str, Any] = {
        name: (float(text) if text else None) if kind == float | None else cast(Any, kind)(text)
        for name, kind in _TYPES.items()
        for text in [line[name]]
    }
    trial = Trial(**{field.name: values.pop(field.name) for field in fields(Trial)})
    return Row(trial, **values)
