"""Latency: whether fewer operations take less time, eager and compiled."""

import time
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_fold as lf
from benchmarks.gpu_parts.placement import memory_format, placed
from benchmarks.gpu_parts.plan import Deadline
from benchmarks.gpu_parts.results import Results
from benchmarks.gpu_parts.rewriting import Done, Job, Network, Pool

PART = "latency"
LARGE = {
    "ResNet-50": Network("torchvision.models.resnet50", {}, (3, 224, 224)),
    "ViT-B/16": Network("vit_base_patch16_224", {}, (3, 224, 224)),
    "ConvNeXt-T": Network("convnext_tiny", {}, (3, 224, 224)),
}
SMALL = {
    "ResNet-8": Network("lightning_fold.models.CifarResNet", {"depth": 8}, (3, 16, 16)),
}

# Pruning and folding half of the channels gives the same widths; a few of FLOPs would give odd ones.
METHODS: dict[str, tuple[float, Any]] = {
    "dense": (1.0, "channels"),
    "prune": (0.5, "channels"),
    "factorize": (0.5, "flops"),
    "fold": (0.5, "channels"),
}


@dataclass(frozen=True)
class Setting:
    """Networks and how they are timed.

    Attributes:
        batches, compiled: sizes of batches, eager, and compiled in the order in which there is time for them.
        runs: timed passes.
        backend: the compiler's.
        wait: seconds for a rewrite that has not ended yet.
    """

    networks: dict[str, Network]
    batches: tuple[int, ...] = (1, 64, 256)
    compiled: tuple[int, ...] = (64, 1, 256)
    runs: int = 15
    backend: str = "inductor"
    wait: float = 20.0


FULL = Setting(LARGE)
TINY = Setting(SMALL, batches=(1, 4), compiled=(4,), runs=2, backend="eager", wait=120.0)


def prepare(setting: Setting, work: Path, workers: Pool) -> dict[str, dict[str, "AsyncResult[Done]"]]:
    """Begin the rewrites of all networks; they take as long as a minute of the CPU each."""
    pending: dict[str, dict[str, AsyncResult[Done]]] = {}
    for name, network in setting.networks.items():
        target = {method: work / f"{name.replace('/', '-')}-{method}.pt" for method in METHODS}
        jobs = [Job(network, method, target[method], *share) for method, share in METHODS.items()]
        jobs = [job if job.method != "fold" else _without_repair(job) for job in jobs]
        pending[name] = dict(zip(METHODS, workers.submit(*jobs), strict=True))
    return pending


class Timing:
    """Adds rows for networks against the dense one of the same name."""

    def __init__(self, results: Results, setting: Setting, device: torch.device, deadline: Deadline) -> None:
        self.results, self.setting, self.device, self.deadline = results, setting, device, deadline
        self.dense: dict[tuple[str, str, int], float] = {}
        self.shapes: dict[str, dict[str, list[list[int]]]] = {}
        self.longest = 0.0

    def eager(self, name: str, done: Done) -> None:
        """One row for each batch size, unless another rewrite gave the same shapes."""
        model = self.load(done)
        shapes = [list(parameter.shape) for parameter in model.parameters()]
        same = [method for method, found in self.shapes.get(name, {}).items() if found == shapes]
        self.shapes.setdefault(name, {})[done.job.method] = shapes
        if same:
            self.results.add(PART, f"{name}: {done.job.method}", **done.figures(), shapes=f"those of {same[0]}")
            return
        for batch in self.setting.batches:
            with self.results.guard(PART, f"{name}: {done.job.method}, eager, batch {batch}"):
                self.time("eager", name, done, model, batch)

    def compiled(self, name: str, done: Done, batch: int) -> None:
        """One row, if there is time for it."""
        if self.deadline.left < 1.2 * self.longest + 1:
            return
        with self.results.guard(PART, f"{name}: {done.job.method}, compiled, batch {batch}"):
            start = time.monotonic()
            model = self.load(done)
            torch.compiler.reset()
            model.compile(backend=self.setting.backend, dynamic=False)
            self.time("compiled", name, done, model, batch)
            self.longest = max(self.longest, time.monotonic() - start)

    def load(self, done: Done) -> nn.Module:
        """The network of a job as it is timed: bfloat16, channels last, on the device."""
        return placed(lf.load(done.job.target).to(torch.bfloat16), self.device)

    def time(self, mode: str, name: str, done: Done, model: nn.Module, batch: int) -> None:
        """Measure and add one row."""
        seconds = float(lf.measure_latency(model, self._images(done, batch), runs=self.setting.runs, warmup=3))
        method, key = done.job.method, (mode, name, batch)
        if method == "dense":
            self.dense[key] = seconds
        saved: dict[str, Any] = {}
        if method != "dense" and key in self.dense:
            saved = {"FLOPs saved": 1 - done.flops, "time saved": 1 - seconds / self.dense[key]}
        self.results.add(PART, f"{name}: {method}, {mode}, batch {batch}", ms=1000 * seconds, **saved)

    def _images(self, done: Done, batch: int) -> Tensor:
        images = torch.randn(batch, *done.job.network.image, device=self.device, dtype=torch.bfloat16)
        return images.contiguous(memory_format=memory_format(self.device))


def measure(
    results: Results,
    setting: Setting,
    device: torch.device,
    pending: dict[str, dict[str, "AsyncResult[Done]"]],
    deadline: Deadline,
) -> None:
    """Add all rows: every network eager, then compiled while there is time."""
    timing, done = Timing(results, setting, device, deadline), {}
    for name, methods in pending.items():
        for method, result in methods.items():
            with results.guard(PART, f"{name}: {method}"):
                done[name, method] = result.get(min(setting.wait, deadline.left))
                timing.eager(name, done[name, method])
    chosen = [(name, method) for name, method in done if method != "fold"]
    for batch in setting.compiled:
        for name, method in chosen:
            timing.compiled(name, done[name, method], batch)


def _without_repair(job: Job) -> Job:
    return Job(**{**vars(job), "options": {"repair": "none"}})
