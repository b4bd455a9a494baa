"""Correctness: the tests marked ``cuda``, in a process of their own with a limit of time."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.plan import Deadline
from benchmarks.gpu_parts.results import Results

PART = "correctness"
ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/cuda"
ADDOPTS = "--import-mode=importlib"  # without pytest-xdist, which need not be installed

# On a CPU, where the suite runs all of them anyway.
FEW = "adam or saved or pt2"


def measure(results: Results, work: Path, deadline: Deadline, *, cuda: bool, tests: str = TESTS) -> None:
    """Run the tests and add a row for each, also where the time ends before the tests."""
    outcomes = work / "outcomes.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", tests, "-o", f"addopts={ADDOPTS}"]
    command += ["-m", "cuda"] if cuda else ["-m", "not cuda and not slow", "-k", FEW]
    command += ["-p", "benchmarks.gpu_parts.outcomes"]
    command += ["--outcomes", str(outcomes), *(["-n", "4"] if cuda and find_spec("xdist") else [])]
    ended, output = run(command, deadline.left)
    found = read(outcomes)
    for row in found:
        results.add(PART, **row)
    if not ended:
        results.add(PART, "time", ok=False, error=f"ended by the limit after {len(found)} tests")
    if not found:
        results.add(PART, "pytest", ok=False, error=output[-1500:])


def run(command: list[str], seconds: float) -> tuple[bool, str]:
    """Run a command for so many seconds at most: whether it ended by itself, and its output."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    try:
        output, _ = process.communicate(timeout=max(seconds, 1.0))
        return True, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with the processes of pytest-xdist
        return False, process.communicate()[0]


def read(outcomes: Path) -> list[dict[str, Any]]:
    """Rows of the tests that were run."""
    lines = outcomes.read_text().splitlines() if outcomes.exists() else []
    rows = []
    for line in map(json.loads, lines):
        row = {"name": line["name"].rpartition("/")[2], "ok": line["outcome"] != "failed", "seconds": line["seconds"]}
        skipped = {"skipped": "yes"} if line["outcome"] == "skipped" else {}
        rows.append(row | skipped | line["figures"] | ({"error": line["error"]} if line["error"] else {}))
    return rows
