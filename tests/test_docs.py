"""Python in the pages of docs/ runs, and their commands are understood."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from lightning_fold.commands.listing import COMMANDS, function_of
from lightning_fold.commands.parser import command_parser

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page):
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])
    lines = [shlex.split(line) for block in blocks(page, "bash") for line in block.splitlines()]
    for words in lines:
        assert words[0] == "lightning-fold" and words[1] in COMMANDS
        command_parser(words[1], function_of(words[1])).parse_args(words[2:])


def test_links_lead_somewhere():
    for page in [*PAGES, DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
