"""Measures every method at several sizes on trained networks; a second call continues with the missing rows."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from itertools import product
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, cast

import torch

from lightning_fold.commands.methods import apply
from lightning_fold.commands.rows import DENSE, Row, Trial, read_rows, write_rows
from lightning_fold.commands.runs import Run, read_config, read_run
from lightning_fold.complexity import count_flops, count_parameters
from lightning_fold.errors import ArgumentError, RewriteError
from lightning_fold.evaluation.evaluate import Split, evaluate
from lightning_fold.inputs import first_examples
from lightning_fold.remarks import silence
from lightning_fold.rewrites.size import Of

REPAIR_BATCHES = 50


def plan(
    checkpoints: Iterable[str | Path],
    methods: Sequence[str],
    sizes: Sequence[float],
    repairs: Sequence[str],
    *,
    of: Of = "parameters",
    skip: Sequence[str] = (),
    config: str | None = None,
    split: Split = "test",
    monitor: str = "",
    limit: int = 0,
) -> list[Trial]:
    """All trials; for each checkpoint, the dense network comes first.

    Raises:
        ArgumentError: a size is outside (0, 1).
        OSError: a checkpoint or ``config`` cannot be read.
    """
    if wrong := [size for size in sizes if not 0 < size < 1]:
        raise ArgumentError(f"compare(sizes={wrong}): expected shares of the {of} in (0, 1), for example 0.5.")
    trials = []
    for path in map(Path, checkpoints):
        common: dict[str, Any] = {"checkpoint": str(path), "digest": _digest(path, config)}
        common |= {"of": of, "skip": " ".join(skip), "split": split, "limit": limit}
        common |= {"monitor": monitor or f"accuracy/{split}"}
        trials.append(Trial(method=DENSE, keep=1.0, repair="none", **common))
        for method, keep, repaired in product(methods, sizes, repairs):
            trials.append(Trial(method=method, keep=keep, repair=repaired, **common))
    return trials


def run_trials(
    trials: Sequence[Trial], table: Path, *, config: str | None = None, workers: int = 1, done: Callable[[], object]
) -> list[Row]:
    """The rows of all trials; those already in ``table`` are read from it, others are added as they are measured.

    If a dense network cannot be measured, its row gives the reason and its other trials are left out.

    Args:
        trials: the trials to measure.
        table: CSV file; it keeps its rows of other trials.
        config: configuration of the runs; ``None`` uses the one beside each checkpoint.
        workers: number of processes; 1 measures in this process.
        done: called after each row.

    Raises:
        FileError: ``table`` cannot be written.
        ArgumentError: ``table`` is not a table of ``compare``, no network can be measured, or a process died.
    """
    rows = {row.trial: row for row in read_rows(table)}
    known = {trial.key: row for trial, row in rows.items() if not row.failed}
    missing = list({trial.key: trial for trial in trials if trial.key not in known}.values())

    def take(found: Iterable[Row]) -> None:
        for row in found:
            same = [
                trial for trial in trials if trial.key == row.trial.key
            ]  # also files with other names and equal content
            rows.update({trial: replace(row, trial=trial) for trial in same})
            write_rows(rows.values(), table)
            for _ in same:
                done()

    take(known.values())
    with _measuring(config, workers) as measured:
        take(measured([trial for trial in missing if trial == trial.dense]))
        take(measured([trial for trial in missing if trial != trial.dense and not rows[trial.dense].failed]))
    if all(rows[trial.dense].failed for trial in trials):
        raise ArgumentError(rows[trials[0].dense].note)
    return [rows[trial] for trial in trials if trial == trial.dense or not rows[trial.dense].failed]


def run_trial(trial: Trial, config: str | None = None) -> Row:
    """Rewrite a copy of the trial's network and measure it; if that fails, the row gives the reason."""
    try:
        return _measure(trial, config)
    except Exception as error:  # noqa: BLE001  networks, metrics and data are users' code; other trials continue
        kind = "" if isinstance(error, (ValueError, OSError, RewriteError)) else f"{type(error).__name__}: "
        return Row(trial, note=kind + " ".join(str(error).split()))


def _measure(trial: Trial, config: str | None) -> Row:
    run = _cached_run(trial.checkpoint, config)
    network, start, notes = deepcopy(run.network), time.perf_counter(), ()
    dense = count_parameters(network)
    if trial.method != DENSE:
        size: dict[str, Any] = {"keep": trial.keep, "of": trial.of, "skip": trial.skip.split()}
        batches = repair_batches(run, trial.repair)
        notes = apply(trial.method, network, run.inputs, repair=trial.repair, batches=batches, **size).notes
    seconds = time.perf_counter() - start
    limits = {f"limit_{trial.split}_batches": trial.limit} if trial.limit else {}
    metrics = evaluate(run.module, network, run.data, cast(Split, trial.split), seed=run.seed, **limits)
    if trial.monitor not in metrics:
        raise ArgumentError(
            f"compare(monitor={trial.monitor!r}): the {trial.split} data gives {sorted(metrics)}; expected one of them."
        )
    parameters = count_parameters(network)
    return Row(
        trial,
        parameters=parameters,
        share=round(parameters / dense, 4),
        flops=count_flops(network, first_examples(run.inputs, 1)),
        accuracy=metrics[trial.monitor],
        seconds=round(seconds, 2),
        note="; ".join(note.replace("; ", ", ") for note in notes),  # comparison_table splits at "; "
    )


def repair_batches(run: Run, repair: str) -> Iterable[Any] | None:
    """Training batches for a repair that uses them."""
    return None if repair in ("default", "none", "data-free") else run.training_batches(REPAIR_BATCHES)


def _digest(path: Path, config: str | None) -> str:
    try:
        data = read_config(path, config).sections.get("data")
    except ValueError:  # reported when the file is measured; other files continue
        data = None
    return hashlib.sha256(path.read_bytes() + repr(data).encode()).hexdigest()[:16]


@contextmanager
def _measuring(config: str | None, workers: int) -> Iterator[Callable[[Sequence[Trial]], Iterator[Row]]]:
    """A function from trials to rows: one by one in this process, or as ``workers`` processes finish them."""
    if workers <= 1:
        yield lambda trials: (run_trial(trial, config) for trial in trials)
        return
    threads = max(torch.get_num_threads() // workers, 1)
    context = get_context("spawn")  # a forked process would share torch's threads
    with ProcessPoolExecutor(workers, context, _prepare_worker, (threads,)) as pool:
        try:
            yield lambda trials: _in_processes(pool, trials, config)
        finally:
            pool.shutdown(cancel_futures=True)


def _in_processes(pool: Executor, trials: Sequence[Trial], config: str | None) -> Iterator[Row]:
    """Yield every row that was measured; then raise if processes died without one."""
    waiting = [pool.submit(run_trial, trial, config) for trial in trials]
    lost: list[BaseException] = []
    for future in as_completed(waiting):
        if error := future.exception():
            lost.append(error)
        else:
            yield future.result()
    if lost:
        why = f"{type(lost[0]).__name__}: {' '.join(str(lost[0]).split())}"
        raise ArgumentError(
            f"compare: {len(lost)} of {len(trials)} rows were lost with the process that measured them ({why}). The "
            "others are saved; repeat the command to measure the rest. Fewer --workers need less memory."
        ) from lost[0]


def _prepare_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    silence()
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent; if the parent is killed, it would otherwise wait forever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


@lru_cache(maxsize=1)
def _cached_run(checkpoint: str, config: str | None) -> Run:
    return read_run(checkpoint, config)
