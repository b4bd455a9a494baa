"""export: write a network to a file for other programs, and run the file to check it against the network."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightning_fold.arguments import check_choice
from lightning_fold.errors import ArgumentError
from lightning_fold.extras import require
from lightning_fold.inputs import Inputs, as_inputs
from lightning_fold.rewrites.transaction import TOLERANCES, float_tensors, outputs, relative_error
from lightning_fold.storage.files import load, save, write_atomically
from lightning_fold.structure.graph.trace import unwrapped, without_fast_paths

Format = Literal["onnx", "pt2", "safetensors"]

_ONNX_BYTES = 3 * 2**29  # above this size torch writes the weights to a second file
_BATCHES = (2, 3)  # batch sizes for the comparison: the one used for tracing, and another


@dataclass(frozen=True)
class ExportReport:
    """A written file, and the relative error of its outputs: the largest difference over the largest output."""

    path: Path
    format: Format
    bytes: int
    max_relative_error: float

    def __str__(self) -> str:
        return f"{self.path}  {self.format}, {self.bytes:,} bytes, relative error {self.max_relative_error:.1e}"


def export(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    format: Format | None = None,
    network: str | None = None,
    network_args: dict[str, Any] | None = None,
) -> ExportReport:
    """Write ``model``, in evaluation mode, to a file that accepts batches of any size.

    The file is read back and run on two batch sizes; it is saved at ``path`` only if its outputs match the network's.

    Args:
        model: the network; it is not changed.
        example_inputs: a tensor, or a tuple of tensors, batch first.
        path: file to write, with the suffix of its format.
        format: ``"onnx"`` (for onnxruntime), ``"pt2"`` (a ``torch.export`` program) or ``"safetensors"`` (tensors,
            with the structure in the metadata, for :func:`lightning_fold.load`); ``None`` uses the suffix of ``path``.
        network: for safetensors, the class path or timm name that builds the network before compression.
        network_args: its arguments, plain values.

    Raises:
        ArgumentError: the format is unknown or does not match the suffix; the network cannot be exported for batches
            of any size; the outputs of the file differ from the network's; or safetensors lacks ``network``.
        ArgumentTypeError: ``network`` does not accept ``network_args``.
        MissingPackageError: the extra ``export`` is not installed.
        FileError: the file cannot be written; an existing file of that name is kept.
    """
    path, suffix = Path(path), Path(path).suffix.removeprefix(".")
    if format is not None:
        check_choice("export", "format", format, get_args(Format))
    kind = cast(Format, format or suffix)
    if kind not in get_args(Format) or kind != suffix:
        wanted = f".{kind} for format={kind!r}" if format else ".onnx, .pt2 or .safetensors"
        raise ArgumentError(f"export(path={str(path)!r}): expected a path ending in {wanted}.")
    twin = deepcopy(unwrapped(model)).cpu().eval()
    examples = tuple(value.detach().cpu() for value in as_inputs(example_inputs))
    batches = [_of_size(examples, size) for size in _BATCHES]
    if kind == "safetensors":
        write = _as_safetensors(twin, batches[0], network, network_args)
    else:
        write = (_as_onnx if kind == "onnx" else _as_pt2)(_program(twin, batches[0]))
    errors: list[float] = []

    def write_and_run(partial: Path) -> None:
        run = write(partial)
        for batch in batches:
            expected = outputs(twin, batch)
            errors.append(relative_error(_run(run, batch, kind), expected))
            if not errors[-1] <= TOLERANCES.get(expected[0].dtype, 1e-4):
                raise ArgumentError(
                    f"export({type(model).__name__}, format={kind!r}): the file's outputs have a relative error of "
                    f"{errors[-1]:.2g} for a batch of {len(batch[0])}; no file was written. Try another format."
                )

    write_atomically(path, write_and_run)
    return ExportReport(path, kind, path.stat().st_size, max(errors))


def _run(run: "_Run", batch: tuple[Tensor, ...], kind: str) -> list[Tensor]:
    try:
        with torch.no_grad():
            return run(batch)
    except RuntimeError as error:
        raise ArgumentError(
            f"export(format={kind!r}): the file does not run for a batch of {len(batch[0])}: "
            f"{str(error).splitlines()[0]} No file was written. Try another format."
        ) from error


_Run = Callable[[tuple[Tensor, ...]], list[Tensor]]
_Write = Callable[[Path], _Run]


def _as_onnx(program: ExportedProgram) -> _Write:
    require("export(format='onnx')", "onnx", "onnxruntime", "onnxscript")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as refused  # pyright: ignore[reportAttributeAccessIssue]

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > _ONNX_BYTES:
        raise ArgumentError(
            f"export(format='onnx'): found {size:,} bytes of weights, expected at most {_ONNX_BYTES:,}: a file of this "
            "format is limited to 2 GB. Export to pt2 or safetensors."
        )
    try:
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ArgumentError(
            f"export(format='onnx'): ONNX does not support an operator of the network: {error}"
        ) from error
    assert converted is not None

    def write(path: Path) -> _Run:
        converted.save(path)
        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except (refused.NotImplemented, refused.InvalidGraph, refused.Fail) as error:
            raise ArgumentError(
                f"export(format='onnx'): onnxruntime cannot run the file: {error}. It does not support every operator "
                "in every dtype: try model.float()."
            ) from error
        names = [node.name for node in session.get_inputs()]
        return lambda batch: float_tensors(
            [
                torch.from_numpy(value)
                for value in session.run(None, {n: t.numpy() for n, t in zip(names, batch, strict=True)})
            ]
        )

    return write


def _as_pt2(program: ExportedProgram) -> _Write:
    def write(path: Path) -> _Run:
        torch.export.save(program, path)
        module = load(path, trusted=True)
        return lambda batch: float_tensors(module(*batch))

    return write


def _as_safetensors(
    model: nn.Module, examples: tuple[Tensor, ...], network: str | None, network_args: dict[str, Any] | None
) -> _Write:
    if network is None:
        raise ArgumentError(
            "export(format='safetensors'): the file contains no code; expected network=, the class path or timm name "
            "that builds the network before compression. Pass it, or export to pt2."
        )

    def write(path: Path) -> _Run:
        save(model, path, network=network, network_args=network_args, example_inputs=examples)
        return lambda batch: outputs(load(path), batch)

    return write


def _program(model: nn.Module, examples: tuple[Tensor, ...]) -> ExportedProgram:
    batch = Dim("batch")
    shapes = tuple({0: batch} if value.dim() else None for value in examples)
    try:
        with torch.no_grad(), without_fast_paths():
            return torch.export.export(model, examples, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArgumentError(
            f"export({type(model).__name__}): torch.export cannot trace it for batches of any size: "
            f"{str(error).splitlines()[0]} Its forward code must not fix the batch size."
        ) from error


def _of_size(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """The first ``size`` examples, repeated if there are fewer."""
    return tuple(v[torch.arange(size) % len(v)] if v.dim() else v for v in inputs)
