"""What the README says can be done, is done."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lightning_fold.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)

# Commands that need a network, a fresh environment or this test suite itself: they must be among these.
SETUP = {
    "pip install -e .",
    "pip install -e '.[test]'",
    "pip install -e '.[export]'",
    "pip install lightning-fold",
    "python -m pip install -e .",
    "python -m pip install -e '.[test]'",
    "python -m venv .venv",
    "source .venv/bin/activate",
    ". .venv/bin/activate",
    "pytest",
    "pytest -n 2",
    "pytest -m slow",
    "pytest -m 'slow or not slow'",
    "make setup",
    "make lint",
    "make type",
    "make test",
    "pre-commit install",
    "cd lightning-fold",
}
SETUP_STARTS = ("git clone https://", "tensorboard --logdir")


def commands(block):
    """The commands of a shell block: one for each line or ``&&``, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            if words := shlex.split(command.removeprefix("$ "), comments=True):
                yield command.partition(" #")[0].removeprefix("$ ").strip(), words


def test_commands_are_found():
    """Every line of the README that looks like a command stands in a block that is read here."""
    read = [text for kind, block in BLOCKS if kind in ("bash", "sh", "console") for text, _ in commands(block)]
    fenced = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    outside = re.findall(r"^(?: {4}|\t)(?:\$ )?((?:pip|lightning-fold|pytest) .*)$", fenced, flags=re.MULTILINE)
    assert not outside, f"write {outside} in a ```bash block"
    assert any(text.startswith("lightning-fold fit") for text in read)


def test_readme_runs_from_top_to_bottom(recipes_in, capsys):
    """Commands of this package and Python blocks run in one folder, in order, with shortened recipes."""
    names = {}
    for kind, block in BLOCKS:
        if kind in ("bash", "sh", "console"):
            for text, words in commands(block):
                _run(text, words)
        elif kind == "python":
            exec(compile(block, "README.md", "exec"), names)
        elif kind == "yaml":
            assert yaml.safe_load(block)


def _run(text, words):
    if words[0] != "lightning-fold":
        assert text in SETUP or text.startswith(SETUP_STARTS), f"nothing checks that {text!r} works"
        return
    config = words[words.index("--config") + 1] if "--config" in words else None
    if config is not None and "data_dir" in Path(config).read_text() and not Path("data").exists():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", words)
        try:
            main(words[1:])
        except SystemExit as stop:
            assert stop.code == 0, f"{text} failed"
