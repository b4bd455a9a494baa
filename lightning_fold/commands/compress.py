"""compress: rewrites a trained network and writes it as one file."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lightning_fold.commands.methods import apply
from lightning_fold.commands.runs import SUFFIXES, Run, read_run
from lightning_fold.commands.trials import repair_batches
from lightning_fold.complexity import Latency, count_bytes
from lightning_fold.errors import ArgumentError
from lightning_fold.evaluation.measurement import Measurement, latency_note, measure, side_by_side
from lightning_fold.rewrites.size import Of
from lightning_fold.storage.export import export
from lightning_fold.storage.files import save


def compress(
    checkpoint: str,
    output: str,
    method: str = "fold",
    keep: float | dict[str, float] | None = None,
    of: Of = "parameters",
    skip: list[str] = [],  # noqa: B006  read only
    repair: str = "default",
    config: str | None = None,
) -> None:
    """Rewrite a trained network into a smaller one, without training, and write it as one file.

    Args:
        checkpoint: Lightning checkpoint of a run, or a network written by lightning-fold.
        output: file to write. lightning_fold.load reads ".ckpt", ".pt" and ".safetensors"; ".pt2" is a torch.export
            program, for networks that the checkpoint does not name.
        method: prune (by the L2 norm), prune-l1, fold, factorize, or minimize (exact, for a network with zeros);
            prune-least-squares and fold-least-squares also refit the following layers by least squares; or the path of
            a function or class, such as my.module.Method. Add arguments in parentheses:
            "prune(importance='activation')".
        keep: share to keep, in (0, 1], by default 0.5; or shares by name pattern of layers, where the first match
            counts: --keep '{"layer1*": 0.9, "*": 0.5}'.
        of: what keep is a share of: parameters or flops of the network, or channels, of every width in prune and fold
            and of every layer's full rank in factorize.
        skip: layers by name pattern whose input and output widths are kept, for prune and fold, for example
            "[layer1*]".
        repair: default: the method's own repair, Fold-AR in fold and none in the others; none: no repair; data-free:
            Fold-AR, in fold only; data: re-estimate BatchNorm statistics and tune LayerNorms on training batches,
            undone if held-out outputs get worse; or the path of a class.
        config: configuration of the run; by default the config.yaml beside the checkpoint or above its folder.
    """
    path = Path(output)
    _check(checkpoint, path)
    run = read_run(checkpoint, config)
    if run.name is None and path.suffix != ".pt2":
        raise ArgumentError(
            f"compress(output={output!r}): {checkpoint!r} does not say what builds {type(run.network).__name__}; "
            f"expected a path for a torch.export program: --output {path.with_suffix('.pt2')}"
        )
    before, _ = _measure(run)
    batches = repair_batches(run, repair)
    report = apply(method, run.network, run.inputs, keep=keep, of=of, skip=skip, repair=repair, batches=batches)
    after, latency = _measure(run)
    _write(run, path)
    table = side_by_side(before, after, latency_note(before, after, latency), "before", "after")
    notes = [escape(f"note: {note}") for note in report.notes]
    Console().print(table, *notes, escape(f"{report.method}: written to {output}"), sep="\n")


def _check(checkpoint: str, output: Path) -> None:
    if output.suffix not in (*SUFFIXES, ".pt2"):
        expected = f"a file that ends in {', '.join(SUFFIXES)} or .pt2"
        raise ArgumentError(f"compress(output={str(output)!r}): expected {expected}.")
    if Path(checkpoint).exists() and output.exists() and output.samefile(checkpoint):
        raise ArgumentError(f"compress(output={str(output)!r}): this is the checkpoint itself; expected another file.")


def _measure(run: Run) -> tuple[Measurement, Latency]:
    return measure(run.network, run.inputs, count_bytes(run.network), run.module, run.datamodule, seed=run.seed)


def _write(run: Run, path: Path) -> None:
    if path.suffix == ".pt2" or run.name is None:
        export(run.network, run.inputs, path)
    else:
        save(run.network, path, network=run.name, network_args=run.arguments, example_inputs=run.inputs)
