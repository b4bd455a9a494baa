"""A plugin for pytest that writes each test's outcome as a line of JSON as soon as it is known.

pytest -p benchmarks.gpu_parts.outcomes --outcomes FILE
"""

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--outcomes", type=Path, help="file to which a line of JSON is added for every test")


def pytest_configure(config: pytest.Config) -> None:
    """Listen in the main process: those of pytest-xdist send their reports there."""
    if config.option.outcomes is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(config.option.outcomes))


class _Writer:
    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            line = {
                "name": report.nodeid,
                "outcome": report.outcome,
                "seconds": round(report.duration, 2),
                "figures": dict(report.user_properties),
                "error": "" if report.outcome == "passed" else str(report.longrepr)[-1500:],
            }
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
