"""Draws the package from its imports: folders as rooms, floors, circles; and how long its functions are.

    python benchmarks/import_tree.py

A room is a file or a folder inside a folder. A room stands one floor above the highest room that it imports.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "lightning_fold"


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name; ``callbacks`` by the name under which it is imported."""
    folders = {REPOSITORY / PACKAGE: "", REPOSITORY / "callbacks": "callbacks"}
    found = {}
    for folder, prefix in folders.items():
        for path in sorted(folder.rglob("*.py")):
            if "callbacks" not in path.relative_to(folder).parts:
                parts = [PACKAGE, prefix, *path.relative_to(folder).with_suffix("").parts]
                found[".".join(part for part in parts if part and part != "__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= full if full <= modules().keys() else {node.module}
    return names & modules().keys()


@cache
def file_arrows() -> dict[str, set[str]]:
    """For each module those that it imports; ``__init__`` files, which only hand names on, have no arrows."""
    files = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    return {name: imported(path) - {name} for name, path in files.items()}


@cache
def folders() -> dict[str, set[str]]:
    """For each folder the rooms in it, by dotted name."""
    found: dict[str, set[str]] = {}
    for name in modules():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), set()).add(".".join(parts[: depth + 1]))
    return found


def room_arrows(folder: str) -> dict[str, set[str]]:
    """For each room of ``folder`` the other rooms of it that it imports."""
    arrows: dict[str, set[str]] = {room: set() for room in folders()[folder]}
    for source, targets in file_arrows().items():
        start = _room_of(folder, source)
        ends = {_room_of(folder, target) for target in targets}
        if start is not None:
            arrows[start] |= {end for end in ends if end not in (None, start)}  # pyright: ignore[reportAttributeAccessIssue]
    return arrows


def _room_of(folder: str, module: str) -> str | None:
    inside = module.removeprefix(f"{folder}.")
    return None if inside == module else f"{folder}.{inside.partition('.')[0]}"


def circles(arrows: dict[str, set[str]]) -> set[str]:
    """The nodes that lie on a circle, or lead into one: what is left when those without arrows are taken away."""
    left = {node: set(targets) for node, targets in arrows.items()}
    while free := {node for node, targets in left.items() if not targets & left.keys()}:
        left = {node: targets for node, targets in left.items() if node not in free}
    return set(left)


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each node; 1 is the ground."""

    @cache
    def floor(node: str) -> int:
        return 1 + max((floor(target) for target in arrows[node]), default=0)

    return {node: floor(node) for node in arrows}


def function_lengths() -> Iterator[tuple[int, str]]:
    """The lines of every function's body, without its docstring, and where it is."""
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                yield lines, f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"


def main() -> None:
    """Print the sheet."""
    for folder in sorted(folders()):
        arrows = room_arrows(folder)
        if lost := circles(arrows):
            print(f"{folder}: a circle among {', '.join(sorted(lost))}")  # noqa: T201
            continue
        by_floor: dict[int, list[str]] = {}
        for room, floor in sorted(floors(arrows).items()):
            by_floor.setdefault(floor, []).append(room.removeprefix(f"{folder}."))
        count = sum(map(len, arrows.values()))
        print(f"{folder}: {len(arrows)} rooms, {len(by_floor)} floors, {count} arrows")  # noqa: T201
        for floor in sorted(by_floor, reverse=True):
            print(f"  {floor}  {', '.join(by_floor[floor])}")  # noqa: T201
    lengths = sorted(function_lengths())
    numbers = [lines for lines, _ in lengths]
    print(f"{len(lengths)} functions, {median(numbers):.0f} lines at the median; the longest: {lengths[-1][1]}")  # noqa: T201


if __name__ == "__main__":
    main()
