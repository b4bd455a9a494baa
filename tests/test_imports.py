"""Layers import in one direction: structure, then surgery, then rewrites; none of them imports Lightning."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_fold

ROOT = Path(lightning_fold.__file__).parent
CORE = ["structure", "rewrites", "regularizers", "surgery", "inputs.py", "report.py", "complexity.py"]


def _files(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / part]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def _begins(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("part", CORE)
def test_core_imports_neither_lightning_nor_callbacks(part: str) -> None:
    files = _files(part)
    assert files and all(_imports(path) for path in files if path.name != "__init__.py")
    forbidden = ("lightning", "pytorch_lightning", "callbacks", "lightning_fold.callbacks", "lightning_fold.modules")
    found = {str(path): name for path in files for name in _imports(path) if _begins(name, *forbidden)}
    assert found == {}


def test_structure_imports_no_writer() -> None:
    names = {name for path in _files("structure") for name in _imports(path)}
    assert any(_begins(name, "lightning_fold.structure") for name in names)
    assert not any(_begins(name, "lightning_fold.rewrites", "lightning_fold.surgery") for name in names)


def test_surgery_imports_nothing_that_decides() -> None:
    names = {name for path in _files("surgery") for name in _imports(path)}
    assert any(_begins(name, "lightning_fold.structure") for name in names)
    assert not any(_begins(name, "lightning_fold.rewrites") for name in names)


def test_only_surgery_writes_tables_of_modules() -> None:
    """Nobody else assigns into, deletes from or updates ``_parameters``, ``_buffers`` or ``_modules``."""
    outside = [path for part in CORE if part != "surgery" for path in _files(part)]
    assert [path.name for path in outside if _written_tables(path)] == []
    assert {path.name for path in _files("surgery") if _written_tables(path)} == {"editor.py", "baking.py"}


def _written_tables(path: Path) -> list[str]:
    written: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Assign, ast.Delete)):
            written += [ast.unparse(target) for target in node.targets if isinstance(target, ast.Subscript)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            written += [ast.unparse(node.func)] if node.func.attr in ("update", "pop", "clear", "setdefault") else []
    return [text for text in written if any(table in text for table in ("._parameters", "._buffers", "._modules"))]


def test_hooks_of_layers_are_registered_in_one_place() -> None:
    """Where they are removed, too, whatever happens."""
    found = [path.name for path in _files("rewrites") if ".register_forward" in path.read_text()]
    assert found == ["observe.py"]


def test_importing_the_package_does_not_import_lightning() -> None:
    code = "import sys, lightning_fold; sys.exit('lightning' in sys.modules or 'pytorch_lightning' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
