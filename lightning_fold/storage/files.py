"""A single file for a compressed network: class and arguments, structure, and tensors, without pickled code."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import is_pruned

from lightning_fold.errors import ArgumentError, FileError, MissingFileError
from lightning_fold.inputs import Inputs, as_inputs
from lightning_fold.models.factory import build_network, checked_builder, without_pretraining
from lightning_fold.storage.describe import describe
from lightning_fold.storage.rebuild import rebuild
from lightning_fold.storage.safetensors import read_safetensors, write_safetensors
from lightning_fold.structure.graph.trace import unwrapped
from lightning_fold.surgery.transaction import Surgery

_FORMAT = 1


def save(
    model: nn.Module,
    path: str | Path,
    *,
    network: str,
    network_args: dict[str, Any] | None = None,
    example_inputs: Inputs | None = None,
) -> None:
    """Write ``model`` to ``path``, for :func:`load`.

    Args:
        model: the network; ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` wrappers are left out.
        path: file to write; an existing file is replaced only once the new one is complete. The suffix
            ``.safetensors`` selects that format, with everything except the tensors in its metadata.
        network: dotted path of a class or of a function annotated to return an ``nn.Module``, or timm name, that builds
            the network before compression.
        network_args: its arguments, plain values; timm's ``pretrained`` is not stored, since the file has the weights.
        example_inputs: inputs whose shapes and dtypes are stored, so that the file can be measured and exported later.

    Raises:
        FileError: the file cannot be written; an existing file of that name is kept.
        ArgumentError: ``network`` names nothing that builds networks, or ``model`` has masks of
            ``torch.nn.utils.prune``.
        ArgumentTypeError: ``network`` does not accept these arguments, or needs others.
        MissingPackageError: ``.safetensors`` without the extra ``export``.
    """
    path, model = Path(path), unwrapped(model)
    checked_builder(network, network_args or {})
    if is_pruned(model):
        raise ArgumentError(
            f"save({type(model).__name__}): the network has masks of torch.nn.utils.prune, which a newly built network "
            "lacks. First call torch.nn.utils.prune.remove(module, name) for each mask, or lightning_fold.minimize."
        )
    state = model.state_dict()
    content = {
        "lightning_fold": _FORMAT,
        "network": network,
        "network_args": without_pretraining(network, network_args or {}),
        "inputs": [_describe_input(value) for value in as_inputs(example_inputs)] if example_inputs is not None else [],
        "structure": describe(model),
        "types": {name: _type(buffer) for name, buffer in model.named_buffers() if name not in state},
        "state_dict": {name: tensor.detach().cpu() for name, tensor in state.items()},
    }
    write = write_safetensors if path.suffix == ".safetensors" else torch.save
    write_atomically(path, lambda partial: write(content, partial))


def load(path: str | Path, *, trusted: bool = False) -> nn.Module:
    """Load a compressed network from a file, in evaluation mode, on the CPU.

    Args:
        path: a file written by :func:`save`, the commands ``fit`` and ``compress``, or :func:`lightning_fold.export`.
        trusted: whether code in the file may run. Only ``.pt2`` programs need this: torch evaluates expressions and
            unpickles objects in them.

    Raises:
        MissingFileError: there is no such file.
        ArgumentError: the file is truncated, was written by another program, or is a ``.pt2`` program that is not
            trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"lightning_fold.load({str(path)!r}): there is no such file.")
    if path.suffix == ".pt2":
        return _load_program(path, trusted)
    return load_file(path)[0]


def load_file(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file that :func:`save` wrote, and the complete content of the file.

    Raises:
        ArgumentError: as for :func:`load`.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    if content.get("lightning_fold") != _FORMAT or "network" not in content:
        raise ArgumentError(
            f"lightning_fold.load({str(path)!r}): expected a compressed network written by lightning-fold, found a "
            f"file with the keys {sorted(map(str, content))[:8]}. Load Lightning checkpoints with "
            "load_from_checkpoint."
        )
    model = build_network(content["network"], content["network_args"])
    try:
        rebuild(model, content["structure"])
        _match_types(model, content["state_dict"], content.get("types", {}))
        model.load_state_dict(content["state_dict"])
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ArgumentError(
            f"lightning_fold.load({str(path)!r}): the parts of the file do not match: {error}."
        ) from error
    return model.eval(), content


def example_of(content: dict[str, Any]) -> tuple[Tensor, ...] | None:
    """Random inputs with the shapes and dtypes stored in a file, identical each time; ``None`` if it stores none."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for entry in content.get("inputs", []):
        dtype = getattr(torch, entry["dtype"])
        random = torch.randn(entry["shape"], generator=generator) if dtype.is_floating_point else None
        found.append(torch.zeros(entry["shape"], dtype=dtype) if random is None else random.to(dtype))
    return tuple(found) or None


def _describe_input(value: Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": _type(value)}


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _load_program(path: Path, trusted: bool) -> nn.Module:
    if not trusted:
        raise ArgumentError(
            f"lightning_fold.load({str(path)!r}): a .pt2 program can run code while torch reads it. If you trust its "
            "author, call lightning_fold.load(path, trusted=True)."
        )
    try:
        return torch.export.load(path).module()
    except (RuntimeError, AssertionError, OSError, KeyError, ValueError) as error:
        raise ArgumentError(f"lightning_fold.load({str(path)!r}): torch.export cannot read it: {error}.") from error


def _match_types(model: nn.Module, state: dict[str, Tensor], unsaved: dict[str, str]) -> None:
    """Give tensors the dtypes in ``state``, and non-persistent buffers those in ``unsaved``."""
    with Surgery(model) as surgery:
        for name, stored in state.items():
            if surgery.tensor(name).dtype != stored.dtype:
                surgery.transform(name, lambda tensor, dtype=stored.dtype: tensor.to(dtype))
    for name, stored in unsaved.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        owner.register_buffer(leaf, owner.get_buffer(leaf).to(getattr(torch, stored)), persistent=False)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A dict of tensors and plain values from ``path``; no code in the file is run.

    Raises:
        ArgumentError: the file is incomplete, or contains something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, KeyError) as error:
        raise ArgumentError(
            f"{str(path)!r} cannot be read: expected a complete file of tensors and plain values. It is truncated, "
            f"another program wrote it, or it contains objects that run code ({type(error).__name__}). For a Lightning "
            "checkpoint that you trust: lightning_fold.load_from_checkpoint(YourModule, path, weights_only=False)."
        ) from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{str(path)!r} contains a {type(content).__name__}; expected a dict.")
    return content


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write a temporary file next to ``path``, and rename it to ``path`` once it is complete.

    Raises:
        FileError: the file could not be written; an existing file of that name is kept.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise FileError(
            f"{str(path)!r} could not be written: {error}. Free some space or choose another folder."
        ) from error
