"""A checkout of git without symbolic links says what to do; following its advice helps."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_fold
from lightning_fold.checkout import check_links
from lightning_fold.errors import LightningFoldError

PACKAGE = Path(lightning_fold.__file__).parent


def imported(folder: Path, module: str = "lightning_fold.callbacks") -> subprocess.CompletedProcess[str]:
    code = f"import {module}; print({module}.__file__)"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=folder, env=environment, capture_output=True, text=True
    )


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *words], check=True, cwd=folder)


@pytest.fixture
def copied(tmp_path):
    """The package with its callbacks as files, as a wheel has them."""
    shutil.copytree(PACKAGE, tmp_path / "lightning_fold", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_text_file_in_place_of_the_link_is_explained(copied):
    shutil.rmtree(copied / "lightning_fold" / "callbacks")
    (copied / "lightning_fold" / "callbacks").write_text("../callbacks")
    done = imported(copied)
    assert done.returncode == 1
    assert "CheckoutError" in done.stderr
    assert "git config core.symlinks true && git checkout -- lightning_fold/callbacks" in done.stderr


def test_real_files_are_imported(copied):
    done = imported(copied)
    assert done.stdout.strip() == str(copied / "lightning_fold" / "callbacks" / "__init__.py"), done.stderr


def test_it_is_an_error_of_the_package_and_of_the_import(tmp_path):
    (tmp_path / "callbacks").write_text("../callbacks")
    with pytest.raises(ImportError, match="is a text file; expected a symbolic link") as caught:
        check_links(tmp_path)
    assert isinstance(caught.value, LightningFoldError)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_advice_turns_the_text_into_a_link(tmp_path):
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    (origin / "callbacks").mkdir(parents=True)
    (origin / "lightning_fold").mkdir()
    (origin / "callbacks" / "__init__.py").touch()
    (origin / "lightning_fold" / "callbacks").symlink_to("../callbacks")
    git(origin, "init", "-q")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "all")
    git(origin, "clone", "-q", "-c", "core.symlinks=false", str(origin), str(clone))
    link = clone / "lightning_fold" / "callbacks"
    assert not link.is_symlink() and link.read_text() == "../callbacks"
    git(clone, "config", "core.symlinks", "true")
    git(clone, "checkout", "--", "lightning_fold/callbacks")
    assert link.is_symlink() and (link / "__init__.py").is_file()
