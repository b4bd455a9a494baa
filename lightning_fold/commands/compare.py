"""compare: measures every method at several sizes on trained networks."""

from glob import glob
from os.path import commonpath
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_fold.arguments import check_count
from lightning_fold.commands.comparison_table import Mode, draw, tables_of
from lightning_fold.commands.methods import method_of, takes
from lightning_fold.commands.runs import SUFFIXES
from lightning_fold.commands.trials import plan, run_trials
from lightning_fold.errors import ArgumentError, MissingFileError
from lightning_fold.evaluation.evaluate import Split
from lightning_fold.rewrites.size import Of

COMPARED = ["prune-l1", "prune", "prune-least-squares", "fold", "fold-least-squares", "factorize"]


def compare(
    checkpoint: str,
    methods: list[str] = COMPARED,
    sizes: list[float] = [0.7, 0.5, 0.3],  # noqa: B006  read only
    of: Of = "parameters",
    skip: list[str] = [],  # noqa: B006  read only
    repair: list[str] = ["default"],  # noqa: B006  read only
    split: Split = "test",
    monitor: str = "",
    mode: Mode = "max",
    limit_batches: int = 0,
    workers: int = 1,
    output: str | None = None,
    config: str | None = None,
) -> None:
    """Measure every method at several sizes on trained networks, without training: a table, a CSV file and a plot.

    Rows that are already in the CSV file are not measured again, so an interrupted comparison resumes. A failed trial
    becomes a row with the reason and is tried again next time.

    Args:
        checkpoint: checkpoint or network file, a folder that holds some at any depth, or a glob pattern in quotes.
        methods: prune (by the L2 norm), prune-l1, fold, factorize; prune-least-squares and fold-least-squares also
            refit the following layers by least squares; or the path of a function or class; as a list: --methods
            "[fold,my.module.Method]". Add arguments in parentheses: --methods "[prune(importance='activation')]".
        sizes: shares of the dense network to keep, in (0, 1), as a list: --sizes "[0.7,0.5]".
        of: what sizes are shares of: parameters or flops of the network, or channels, the same share of every width in
            prune and fold and of every layer's full rank in factorize.
        skip: layers by name pattern whose input and output widths are kept, for prune and fold, for example
            "[layer1*]".
        repair: default: the method's own repair, Fold-AR in fold and none in the others; none: no repair; data-free:
            Fold-AR, in fold only; data: re-estimate BatchNorm statistics and tune LayerNorms on training batches,
            undone if held-out outputs get worse; or the path of a class; "[default,data]" measures both.
        split: the data to measure on: test or val.
        monitor: the metric, as the LightningModule logs it; by default accuracy/test or accuracy/val.
        mode: max if higher values of the metric are better, min if lower ones are.
        limit_batches: number of batches to measure on; 0 means all.
        workers: number of parallel processes, at least 1.
        output: folder for comparison.csv, comparison.png and the TensorBoard figure; by default "comparison" in the
            folder that holds the checkpoints.
        config: configuration of the runs; by default the config.yaml beside each checkpoint or above its folder.
    """
    _check({"methods": methods, "sizes": sizes, "repair": repair}, {"limit_batches": limit_batches, "workers": workers})
    files = find_checkpoints(checkpoint)
    folder = Path(output) if output is not None else Path(commonpath([file.absolute().parent for file in files]))
    folder = folder if output is not None else folder / "comparison"
    measured: dict[str, Any] = {"split": split, "monitor": monitor, "limit": limit_batches}
    trials = plan(files, methods, sizes, repair, of=of, skip=skip, config=config, **measured)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("comparing", total=len(trials))
        rows = run_trials(
            trials, folder / "comparison.csv", config=config, workers=workers, done=lambda: progress.advance(task)
        )
    draw(rows, folder)
    Console().print(*tables_of(rows, mode), f"table, plot and TensorBoard figure in {folder}", sep="\n")


def _check(lists: dict[str, list[Any]], counts: dict[str, int]) -> None:
    for name, values in lists.items():
        if not values:
            raise ArgumentError(f"compare({name}=[]): expected at least one. Omit --{name} for the defaults.")
    for method in lists["methods"]:
        if not takes(method_of("compare", method), "keep"):
            raise ArgumentError(f"compare(methods=[{method!r}]): expected methods that take a size; this one does not.")
    for name, count in counts.items():
        check_count("compare", name, count, 1 if name == "workers" else 0)


def find_checkpoints(pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern of either stands for, in order.

    Raises:
        MissingFileError: there is no such file.
    """
    path = Path(pattern)
    named = [path] if path.exists() else [Path(name) for name in glob(pattern, recursive=True)]  # noqa: PTH207  also for absolute patterns
    names = {file for each in named for file in (each.rglob("*") if each.is_dir() else [each])}
    found = sorted(file for file in names if file.is_file() and (file.suffix in SUFFIXES or file == path))
    if not found:
        raise MissingFileError(
            f"{pattern!r}: there is no such file; expected a checkpoint, or a folder or pattern with some "
            f"({', '.join('*' + suffix for suffix in SUFFIXES)})."
        )
    return found
