"""Rewrites in processes of their own, on the CPU's cores, while the GPU does something else."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightning_fold as lf
from benchmarks.gpu_parts.sizes import Unit, size
from lightning_fold.models.factory import build_network

METHODS: dict[str, Callable[..., lf.RewriteReport]] = {
    "prune": lf.prune,
    "fold": lf.fold,
    "factorize": lf.factorize,
}


@dataclass(frozen=True)
class Network:
    """A network by its class path and arguments, and the file with its weights; without one they are random.

    Attributes:
        image: channels, height and width of its inputs.
    """

    name: str
    arguments: dict[str, Any]
    image: tuple[int, int, int]
    weights: Path | None = None

    def load(self) -> torch.nn.Module:
        """The network, in evaluation mode."""
        if self.weights is not None:
            return lf.load(self.weights)
        torch.manual_seed(0)
        return build_network(self.name, self.arguments).eval()


@dataclass(frozen=True)
class Job:
    """One rewrite of a network to a size; the result is written to ``target``.

    Attributes:
        method: name of the rewrite; "dense" for none.
        batches: file with batches of inputs, a list of tensors.
        options: further arguments of the rewrite.
    """

    network: Network
    method: str
    target: Path
    keep: float = 1.0
    of: Unit = "parameters"
    batches: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What a job did: seconds, shares of parameters and FLOPs that are left, and the rewrite's notes."""

    job: Job
    seconds: float
    parameters: float
    flops: float
    notes: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """Its plain values, for a row."""
        noted = {"notes": "; ".join(self.notes)} if self.notes else {}
        shares = {"parameters kept": self.parameters, "FLOPs kept": self.flops}
        return {**shares, "seconds of the rewrite on the CPU": round(self.seconds, 1), **noted}


def run(job: Job) -> Done:
    """Rewrite the network of a job, and write it."""
    start, model = time.monotonic(), job.network.load()
    example = torch.randn(1, *job.network.image, generator=torch.Generator().manual_seed(0))
    report = None
    if job.method != "dense":
        batches: list[Tensor] | None = torch.load(job.batches, weights_only=True) if job.batches else None
        given = {"batches": batches} if batches is not None else {}
        report = METHODS[job.method](model, example, **size(job.keep, job.of), **given, **job.options)
    seconds = time.monotonic() - start
    lf.save(model, job.target, network=job.network.name, network_args=job.network.arguments)
    if report is None:
        return Done(job, seconds, 1.0, 1.0, ())
    assert report.flops_before and report.flops_after
    shares = (report.parameters_after / report.parameters_before, report.flops_after / report.flops_before)
    return Done(job, seconds, *shares, report.notes)


class Pool:
    """Processes that take jobs in the order in which they are submitted."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def submit(self, *jobs: Job) -> list["AsyncResult[Done]"]:
        """Queue jobs; ``result.get(seconds)`` waits for one."""
        return [self._pool.apply_async(run, (job,)) for job in jobs]


@contextmanager
def pool() -> Iterator[Pool]:
    """A process for each pair of cores, six at most, with four threads at most; all are ended on leaving."""
    cores = len(os.sched_getaffinity(0))
    count, threads = max(1, min(6, cores // 2)), max(1, cores // 4)
    with multiprocessing.get_context("spawn").Pool(count, _start, (threads,)) as processes:
        yield Pool(processes)


def _start(threads: int) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.nice(5)
    torch.set_num_threads(threads)
