"""The commands after training: compress, compare and export. Their docstrings are their help."""

from glob import glob
from os.path import commonpath
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_fold.comparison import REPAIR_BATCHES, Repair, plan, run_trials
from lightning_fold.comparison_report import draw, tables_of
from lightning_fold.complexity import Latency, count_bytes
from lightning_fold.deployment import Format, export
from lightning_fold.evaluation import Split
from lightning_fold.measurement import Measurement, latency_note, measure, side_by_side
from lightning_fold.methods import Method, apply
from lightning_fold.runs import Run, read_run
from lightning_fold.serialization import save

_SUFFIXES = (".ckpt", ".pt", ".safetensors")


COMPARED: list[Method] = ["prune-l1", "prune", "prune-least-squares", "fold", "fold-least-squares", "factorize"]


def compress(
    checkpoint: str,
    output: str,
    method: Method = "fold",
    ratio: float | None = None,
    keep_parameters: float | None = None,
    keep_flops: float | None = None,
    repair: Repair = "none",
    config: str | None = None,
) -> None:
    """Rewrite a trained network into a smaller one, without training, and write it as one file.

    Args:
        checkpoint: Lightning checkpoint of a run, or a network written by lightning-fold.
        output: file to write. ".ckpt", ".pt" and ".safetensors" are read by lightning_fold.load; ".pt2" is a
            torch.export program, for networks whose class has no name in the checkpoint.
        method: prune (by the L2 norm), prune-l1, fold, factorize, or minimize (exact, for a network with zeros);
            prune-least-squares and fold-least-squares also fit the layers behind to the channels that stay.
        ratio: share of the channels to remove, in [0, 1), for prune and fold.
        keep_parameters: share of the parameters to keep, in (0, 1].
        keep_flops: share of the operations to keep, in (0, 1].
        repair: data repairs the network with training batches, for example its BatchNorm statistics; none does not.
        config: configuration of the run; by default the config.yaml beside the checkpoint or above its folder.
    """
    path = Path(output)
    if path.suffix not in (*_SUFFIXES, ".pt2"):
        raise ValueError(f"compress(output={output!r}): expected a file that ends in {', '.join(_SUFFIXES)} or .pt2.")
    if path.absolute() == Path(checkpoint).absolute():
        raise ValueError(f"compress(output={output!r}): this is the checkpoint itself; expected another file.")
    run = read_run(checkpoint, config)
    if run.name is None and path.suffix != ".pt2":
        raise ValueError(
            f"compress(output={output!r}): {checkpoint!r} does not say what builds {type(run.network).__name__}, so it "
            f"is written as a torch.export program: --output {path.with_suffix('.pt2')}"
        )
    before, _ = _measure(run)
    sizes = {"ratio": ratio, "keep_parameters": keep_parameters, "keep_flops": keep_flops}
    batches = run.training_batches(REPAIR_BATCHES) if repair == "data" else None
    report = apply(method, run.network, run.inputs, batches=batches, **sizes)
    after, latency = _measure(run)
    _write(run, path)
    table = side_by_side(before, after, latency_note(before, after, latency), "before", "after")
    Console().print(table, f"{report.method}: written to {output}", sep="\n")


def compare(
    checkpoint: str,
    methods: list[Method] = COMPARED,
    sizes: list[float] = [0.7, 0.5, 0.3],  # noqa: B006  read only
    repair: list[Repair] = ["none"],  # noqa: B006  read only
    split: Split = "test",
    monitor: str = "",
    limit_batches: int = 0,
    workers: int = 1,
    output: str | None = None,
    config: str | None = None,
) -> None:
    """Measure every method at several sizes on trained networks, without training: a table, a CSV file and a plot.

    What stands in the CSV file is not measured again, so a comparison that was interrupted goes on.

    Args:
        checkpoint: checkpoint or network file, a folder that holds some at any depth, or a glob pattern in quotes.
        methods: prune (by the L2 norm), prune-l1, fold, factorize; prune-least-squares and fold-least-squares also fit
            the layers behind to the channels that stay.
        sizes: shares of the parameters to keep, in (0, 1).
        repair: data repairs each network with training batches, none does not; "[none,data]" measures both.
        split: the data that is measured: test or val.
        monitor: the metric, as the LightningModule logs it; by default accuracy/test or accuracy/val.
        limit_batches: batches that are measured; 0 measures all.
        workers: processes that measure at the same time.
        output: folder for comparison.csv, comparison.png and the TensorBoard figure; by default "comparison" in the
            folder that holds the checkpoints.
        config: configuration of the runs; by default the config.yaml beside each checkpoint or above its folder.
    """
    files = find_checkpoints(checkpoint)
    folder = Path(output) if output is not None else Path(commonpath([file.absolute().parent for file in files]))
    folder = folder if output is not None else folder / "comparison"
    trials = plan(files, methods, sizes, repair, config=config, split=split, monitor=monitor, limit=limit_batches)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("comparing", total=len(trials))
        rows = run_trials(
            trials, folder / "comparison.csv", config=config, workers=workers, done=lambda: progress.advance(task)
        )
    draw(rows, folder)
    Console().print(*tables_of(rows), f"table, plot and TensorBoard figure in {folder}", sep="\n")


def export_network(checkpoint: str, output: str, format: Format | None = None, config: str | None = None) -> None:
    """Write a network for other programs: ONNX, a torch.export program or safetensors, for batches of any size.

    The file is read back, run on two batch sizes and compared with the network before it is put in place.

    Args:
        checkpoint: network written by lightning-fold, or Lightning checkpoint of a run.
        output: file to write, with the suffix of its format: ".onnx", ".pt2" or ".safetensors".
        format: onnx, pt2 or safetensors; by default the suffix of the output.
        config: configuration of the run; by default the config.yaml beside the checkpoint or above its folder. A
            network written by lightning-fold needs none.
    """
    run = read_run(checkpoint, config)
    report = export(run.network, run.inputs, output, format=format, network=run.name, network_args=run.arguments)
    Console().print(str(report), soft_wrap=True)


def find_checkpoints(pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern stands for, in order.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(pattern)
    names = [path] if path.is_file() else path.rglob("*") if path.is_dir() else map(Path, glob(pattern, recursive=True))
    found = sorted(file for file in names if file.is_file() and (file.suffix in _SUFFIXES or file == path))
    if not found:
        raise FileNotFoundError(
            f"{pattern!r}: there is no such file; expected a checkpoint, a folder or a pattern that finds some "
            f"({', '.join('*' + suffix for suffix in _SUFFIXES)})."
        )
    return found


def _measure(run: Run) -> tuple[Measurement, Latency]:
    return measure(run.network, run.inputs, count_bytes(run.network), run.module, run.datamodule)


def _write(run: Run, path: Path) -> None:
    if path.suffix == ".pt2" or run.name is None:
        export(run.network, run.inputs, path)
    else:
        save(run.network, path, network=run.name, network_args=run.arguments, example_inputs=run.inputs)
