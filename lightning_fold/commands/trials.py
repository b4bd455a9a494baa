"""Every method at several sizes on trained networks: rows in a CSV file that a second call goes on with."""

import csv
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, cast

import torch

from lightning_fold.commands.methods import Method, apply
from lightning_fold.commands.runs import Run, read_config, read_run
from lightning_fold.complexity import count_flops, count_parameters
from lightning_fold.evaluation import Split, evaluate
from lightning_fold.remarks import silence
from lightning_fold.report import RewriteError
from lightning_fold.serialization import write_atomically
from lightning_fold.structure.inputs import first_examples

Repair = Literal["none", "data"]
Of = Literal["parameters", "flops", "channels"]

DENSE = "dense"
REPAIR_BATCHES = 50


@dataclass(frozen=True)
class Trial:
    """What is measured: one network, one method, one size. Equal trials give equal rows.

    Attributes:
        checkpoint: the file of the network.
        digest: of the file's content and of the configuration of its data.
        method: a key of ``METHODS``, or ``"dense"``.
        keep: share to keep, in (0, 1].
        of: what it is a share of: the network's parameters or FLOPs, or the channels of every width.
        skip: patterns of layers whose widths stay, with spaces in between.
        repair: ``"data"`` gives the method ``REPAIR_BATCHES`` training batches to repair the network with.
        split: ``"val"`` or ``"test"``.
        monitor: the metric.
        limit: batches that are measured; 0 for all.
    """

    checkpoint: str
    digest: str
    method: str
    keep: float
    of: str
    skip: str
    repair: str
    split: str
    monitor: str
    limit: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells trials apart: everything but the name of the file."""
        return tuple(vars(self).values())[1:]

    @property
    def sizes(self) -> dict[str, float]:
        """The size as an argument of :func:`lightning_fold.commands.methods.apply`."""
        return {"ratio": round(1 - self.keep, 12)} if self.of == "channels" else {f"keep_{self.of}": self.keep}


@dataclass(frozen=True)
class Row:
    """A trial and what came of it; ``accuracy`` is ``None`` and ``note`` says why where the method failed."""

    trial: Trial
    parameters: int = 0
    share: float = 0.0
    flops: int = 0
    accuracy: float | None = None
    seconds: float = 0.0
    note: str = ""


def plan(
    checkpoints: Iterable[str | Path],
    methods: Sequence[Method],
    sizes: Sequence[float],
    repairs: Sequence[Repair],
    *,
    of: Of = "parameters",
    skip: Sequence[str] = (),
    config: str | None = None,
    split: Split = "test",
    monitor: str = "",
    limit: int = 0,
) -> list[Trial]:
    """All trials, the dense network of each checkpoint first.

    Raises:
        ValueError: a size is outside (0, 1), or a configuration is unreadable.
        OSError: a checkpoint cannot be read.
    """
    if wrong := [size for size in sizes if not 0 < size < 1]:
        raise ValueError(f"compare(sizes={wrong}): expected shares of the {of} in (0, 1), for example 0.5.")
    trials = []
    for path in map(Path, checkpoints):
        data = read_config(path, config).get("data")
        if data is None:
            raise ValueError(
                f"{str(path)!r}: {monitor or 'accuracy'} needs data, and there is no configuration beside the file "
                "that says which. Give that of the run with --config."
            )
        digest = hashlib.sha256(path.read_bytes() + repr(data).encode()).hexdigest()[:16]
        common: dict[str, Any] = {"checkpoint": str(path), "digest": digest, "of": of, "skip": " ".join(skip)}
        common |= {"split": split, "monitor": monitor or f"accuracy/{split}", "limit": limit}
        trials.append(Trial(method=DENSE, keep=1.0, repair="none", **common))
        for method, keep, repaired in product(methods, sizes, repairs):
            trials.append(Trial(method=method, keep=keep, repair=repaired, **common))
    return trials


def run_trials(
    trials: Sequence[Trial], table: Path, *, config: str | None = None, workers: int = 1, done: Callable[[], object]
) -> list[Row]:
    """The rows of all trials; each is written to ``table`` as soon as it is there, and read from it where it is.

    Args:
        trials: what is measured.
        table: CSV file; rows of other trials in it stay.
        config: configuration of the runs; ``None`` takes the one beside each checkpoint.
        workers: processes; 1 measures in this one.
        done: called after each row.

    Raises:
        OSError: ``table`` cannot be written.
        ValueError: ``table`` is no table of this kind.
    """
    rows = {row.trial: row for row in read_rows(table)}
    known = {trial.key: row for trial, row in rows.items() if not row.note}
    missing = {trial.key: trial for trial in trials if trial.key not in known}
    for row in chain(known.values(), _measured(list(missing.values()), config, workers)):
        same = [trial for trial in trials if trial.key == row.trial.key]  # also files of other names with equal content
        rows |= {trial: replace(row, trial=trial) for trial in same}
        write_rows(rows.values(), table)
        for _ in same:
            done()
    return [rows[trial] for trial in trials]


def measure(trial: Trial, config: str | None = None) -> Row:
    """Rewrite a copy of the trial's network and measure it."""
    run = _cached_run(trial.checkpoint, config)
    assert run.datamodule is not None
    network, start = deepcopy(run.network), time.perf_counter()
    dense = count_parameters(network)
    try:
        if trial.method != DENSE:
            batches = run.training_batches(REPAIR_BATCHES) if trial.repair == "data" else None
            apply(
                cast(Method, trial.method), network, run.inputs, batches=batches, skip=trial.skip.split(), **trial.sizes
            )
    except (ValueError, RewriteError) as error:
        return Row(trial, note=" ".join(str(error).split()))
    seconds = time.perf_counter() - start
    limits = {f"limit_{trial.split}_batches": trial.limit} if trial.limit else {}
    metrics = evaluate(run.module, network, run.datamodule, cast(Split, trial.split), **limits)
    if trial.monitor not in metrics:
        raise ValueError(
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
    )


def read_rows(table: Path) -> list[Row]:
    """The rows of a CSV file; none where there is no file.

    Raises:
        ValueError: it is no table of this kind.
    """
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or set(reader.fieldnames) != set(_COLUMNS):
            raise ValueError(f"{str(table)!r} is no table of compare. Give another folder with --output.")
        return [_row(line) for line in reader]


def write_rows(rows: Iterable[Row], table: Path) -> None:
    """Write the CSV file; it is replaced only once the new one is complete."""
    table.parent.mkdir(parents=True, exist_ok=True)
    lines = [asdict(row) for row in rows]

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(line["trial"] | {name: line[name] for name in line if name != "trial"} for line in lines)

    write_atomically(table, write)


_TYPES = {field.name: field.type for kind in (Trial, Row) for field in fields(kind) if field.name != "trial"}
_COLUMNS = list(_TYPES)


def _row(line: dict[str, str]) -> Row:
    values: dict[str, Any] = {
        name: (float(text) if text else None) if kind == float | None else cast(Any, kind)(text)
        for name, kind in _TYPES.items()
        for text in [line[name]]
    }
    trial = Trial(**{field.name: values.pop(field.name) for field in fields(Trial)})
    return Row(trial, **values)


def _measured(trials: Sequence[Trial], config: str | None, workers: int) -> Iterator[Row]:
    if workers <= 1 or len(trials) <= 1:
        yield from (measure(trial, config) for trial in trials)
        return
    threads = max(torch.get_num_threads() // workers, 1)
    context = get_context("spawn")  # a forked process would share torch's threads
    with ProcessPoolExecutor(workers, context, _prepare_worker, (threads,)) as pool:
        waiting = [pool.submit(measure, trial, config) for trial in trials]
        try:
            yield from (future.result() for future in as_completed(waiting))
        except (ValueError, OSError) as error:  # its traceback stayed in the other process
            raise ValueError(str(error)) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    silence()


@lru_cache(maxsize=1)
def _cached_run(checkpoint: str, config: str | None) -> Run:
    return read_run(checkpoint, config)
