"""minimize on the networks of timm and torchvision: exact, whichever weights are zero."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "minimize_zoo.py"
_SPEC = importlib.util.spec_from_file_location("minimize_zoo", BENCHMARK)
assert _SPEC is not None and _SPEC.loader is not None
zoo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(zoo)

# A few in every run, to see that the families of operators meet; all of them take minutes.
FAST = ("test_vit:32", "torchvision/squeezenet1_1:64")
SHARES = {"rows": 0.5, "columns": 0.5, "scattered": 0.9}  # with more, outputs hardly depend on the input


def _cases() -> list:
    return [
        pytest.param(network, pattern, marks=() if network in FAST and pattern == "rows" else pytest.mark.slow)
        for network in zoo.NETWORKS
        for pattern in zoo.PATTERNS
    ]


@pytest.mark.parametrize(("network", "pattern"), _cases())
def test_exact(network: str, pattern: str) -> None:
    name, _, size = network.partition(":")
    result = zoo.measure(name, int(size), pattern, SHARES[pattern])
    assert "failed" not in result, result["failed"]
    assert result["error"] <= 1e-10 and result["factor"] >= 1.0
    assert pattern != "rows" or result["factor"] > 1.01
