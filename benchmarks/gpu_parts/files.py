"""Large files in parts that are small enough to be carried."""

from pathlib import Path

LIMIT = 15 * 2**20


def split(path: Path, limit: int = LIMIT) -> list[Path]:
    """Replace a file by parts ``NAME.part-1``, ``NAME.part-2``, ... of at most ``limit`` bytes, and name them."""
    content = path.read_bytes()
    starts = range(0, max(len(content), 1), limit)
    parts = [path.with_name(f"{path.name}.part-{number}") for number in range(1, len(starts) + 1)]
    for part, start in zip(parts, starts, strict=True):
        part.write_bytes(content[start : start + limit])
    path.unlink()
    return parts


def join(path: Path, target: Path | None = None) -> Path:
    """Write the parts of ``path`` in their order as one file, ``target`` or ``path`` itself.

    Raises:
        FileNotFoundError: there is no first part.
    """
    found = {int(part.name.rpartition("-")[2]): part for part in path.parent.glob(f"{path.name}.part-*")}
    if sorted(found) != list(range(1, len(found) + 1)) or not found:
        raise FileNotFoundError(f"join({str(path)!r}): found the parts {sorted(found)}; expected 1, 2, ... of them.")
    target = target or path
    target.write_bytes(b"".join(found[number].read_bytes() for number in sorted(found)))
    return target
