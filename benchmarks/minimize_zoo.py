"""minimize over timm and torchvision networks: factor reached and reachable, error, time, memory, and what stayed.

    python -m benchmarks.minimize_zoo vit_tiny_patch16_224:32 convnext_atto:64 torchvision/resnet18:64
    python -m benchmarks.minimize_zoo torchvision/resnet50:224 --patterns rows --dtype float32 --threads 2

A name is that of a timm network, or ``torchvision/<name>``; the image size follows a colon. Weights are random;
LayerScale and weights that start at zero are drawn anew, BatchNorm statistics are estimated after masking. The error is
the largest difference of an output relative to the spread of the outputs over inputs. Reachable is the factor if every
channel went that is dead or constant by the analysis; the reasons behind it account for the difference. Memory is the
network's own and the most that minimize needed beside it, divided by the network's own.
"""

import argparse
import gc
import threading
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch

import lightning_fold as lf
from benchmarks.networks import NETWORKS, PATTERNS, build, error_of, reachable_factor


class PeakMemory:
    """The most resident memory inside the block beyond that at its start, in bytes (Linux; 0 elsewhere)."""

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        self.start, self.extra, self._over = _resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.extra = max(self.extra, _resident() - self.start)


def _resident() -> int:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def measure(network: str, pattern: str, dtype: torch.dtype, multiple_of: int) -> str:
    """One line of the table."""
    case = build(network, pattern, dtype=dtype)
    model, images = case.model, case.images(2)
    size = sum(parameter.nbytes for parameter in model.parameters())
    reachable, dense = reachable_factor(model, images), deepcopy(model)
    start = time.perf_counter()
    try:
        with PeakMemory() as memory:
            report = lf.minimize(model, images, multiple_of=multiple_of)
    except (lf.RewriteError, ValueError) as error:
        return str(error)[:160]
    seconds = time.perf_counter() - start
    error = error_of(model, dense, case.images(3, seed=4))
    kept = Counter[str]()
    for each in report.kept:
        kept[" ".join(each.reason.split(" ")[-6:])] += each.channels
    reasons = "; ".join(f"{count} {reason}" for reason, count in kept.most_common(3))
    figures = f"{case.share:5.2f} {report.factor:7.2f} {reachable:9.2f} {error:8.1e} {seconds:8.1f}"
    return f"{figures} {(size + memory.extra) / size:6.2f}  {reasons}"


def rows(networks: list[str], patterns: list[str], dtype: torch.dtype, multiple_of: int) -> Iterator[str]:
    """The lines of the table."""
    yield (
        f"{'network':44s} {'pattern':10s} {'zeros':>5s} {'factor':>7s} {'reachable':>9s} {'error':>8s} {'seconds':>8s} "
        f"{'memory':>6s}  kept"
    )
    for network in networks:
        for pattern in patterns:
            yield f"{network:44s} {pattern:10s} {measure(network, pattern, dtype, multiple_of)}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="timm names or torchvision/<name>, then :<size>")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--multiple-of", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for line in rows(arguments.networks, arguments.patterns, getattr(torch, arguments.dtype), arguments.multiple_of):
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
