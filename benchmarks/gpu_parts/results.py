"""Results: rows that are on the disk as soon as they are known, as one JSON and one Markdown table."""

import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fold.storage.files import write_atomically


class Results:
    """Rows of figures, written to ``results.json`` and ``results.md`` in a folder after each row.

    Args:
        folder: where the files are; it is created.
        about: what holds for all rows, such as the device and the command.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        self.rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, part: str, name: str, *, ok: bool = True, **figures: Any) -> None:
        """One more row: whether it came out as it must, and plain figures."""
        self.rows.append({"part": part, "name": name, "ok": ok, **figures})
        sys.stdout.write(f"{part}: {name}: {_text(self.rows[-1])}\n")
        sys.stdout.flush()
        self._write()

    @contextmanager
    def guard(self, part: str, name: str = "all") -> Iterator[None]:
        """Turn an exception into a row, so that it costs nothing else; report the seconds of what is inside."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001  the rows that follow do not depend on it
            trace = traceback.format_exc()
            self.add(part, name, ok=False, error=f"{type(error).__name__}: {error}"[:500], traceback=trace[-3000:])
        self.about.setdefault("seconds", {})[f"{part}: {name}"] = round(time.monotonic() - start, 1)
        self._write()

    @property
    def failed(self) -> list[str]:
        """The rows that did not come out as they must."""
        return [f"{row['part']}: {row['name']}" for row in self.rows if not row["ok"]]

    def _write(self) -> None:
        content = json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n"
        write_atomically(self.folder / "results.json", lambda partial: partial.write_text(content))
        write_atomically(self.folder / "results.md", lambda partial: partial.write_text(self.table()))

    def table(self) -> str:
        """The rows in Markdown."""
        about = [f"- {key}: {_value(value)}" for key, value in self.about.items()]
        rows = [f"| {r['part']} | {r['name']} | {'yes' if r['ok'] else 'NO'} | {_text(r)} |" for r in self.rows]
        return "\n".join([*about, "", "| part | what | ok | figures |", "|---|---|---|---|", *rows]) + "\n"


def _text(row: dict[str, Any]) -> str:
    hidden = ("part", "name", "ok", "traceback")
    text = ", ".join(f"{key} {_value(value)}" for key, value in row.items() if key not in hidden)
    return text.replace("|", "/").replace("\n", " ")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
