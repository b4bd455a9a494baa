"""What is released: a wheel that imports without the checkout, a source distribution with all that its tests need."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import lightning_fold

REPOSITORY = Path(__file__).resolve().parents[1]
_COPIED = ("lightning_fold", "callbacks", "configs", "docs", "tests", "benchmarks", "examples")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and source distribution, built from a copy of the repository as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in _COPIED:
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in REPOSITORY.glob("*"):
        if file.is_file():
            shutil.copy(file, source)
    target = source / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return {file.suffix: file for file in target.iterdir()}


def _contents(file: Path) -> set[str]:
    if file.suffix == ".whl":
        return set(zipfile.ZipFile(file).namelist())
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_wheel_holds_real_files_of_the_callbacks(built: dict[str, Path]) -> None:
    names = _contents(built[".whl"])
    sources = {
        f"lightning_fold/callbacks/{file.relative_to(REPOSITORY / 'callbacks')}"
        for file in (REPOSITORY / "callbacks").rglob("*.py")
    }
    assert sources and sources <= names
    assert {"lightning_fold/__init__.pyi", "lightning_fold/py.typed"} <= names
    assert not any(name.startswith(("tests/", "callbacks/")) for name in names)


def test_source_distribution_is_complete(built: dict[str, Path]) -> None:
    names = _contents(built[".gz"])
    files = [file for folder in _COPIED for file in (REPOSITORY / folder).rglob("*")]
    wanted = {
        str(f.relative_to(REPOSITORY))
        for f in files
        if f.is_file() and f.suffix in (".py", ".yaml", ".md", ".csv", ".json", ".sh")
    }
    wanted = {name for name in wanted if not name.startswith("lightning_fold/callbacks/")}
    assert wanted <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml"} <= names


def test_metadata_can_be_published(built: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())]
    assert subprocess.run(command, check=False, capture_output=True, text=True).returncode == 0
    assert all(lightning_fold.__version__ in file.name for file in built.values())
