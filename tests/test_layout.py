"""The house: no import circle, imports that go down, few rooms in a folder, short functions, a test file a module."""

from statistics import median

import pytest

from benchmarks import import_tree

FOLDERS = sorted(import_tree.folders())


def test_no_circle_of_files() -> None:
    assert import_tree.circles(import_tree.file_arrows()) == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circle_of_rooms(folder: str) -> None:
    """So every room has a floor, and no arrow goes up."""
    arrows = import_tree.room_arrows(folder)
    assert import_tree.circles(arrows) == set()
    floor = import_tree.floors(arrows)
    assert all(floor[room] > floor[target] for room, targets in arrows.items() for target in targets)


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != import_tree.PACKAGE])
def test_at_most_a_dozen_rooms_in_a_folder(folder: str) -> None:
    assert len(import_tree.folders()[folder]) <= 12


def test_functions_are_short() -> None:
    lengths = sorted(import_tree.function_lengths())
    assert median(lines for lines, _ in lengths) <= 7
    assert lengths[-1][0] <= 45, lengths[-1]


def test_circles_are_found() -> None:
    assert import_tree.circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}
    assert import_tree.floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


def test_each_module_has_its_test_file_under_the_same_path() -> None:
    tests = import_tree.REPOSITORY / "tests"
    modules = [name.split(".")[1:] for name in import_tree.file_arrows()]
    files = [tests.joinpath(*folders, f"test_{name}.py") for *folders, name in modules]
    assert len(files) > 100
    assert [str(file) for file in files if not file.is_file()] == []
