"""One file for a compressed network: its class and arguments, its structure, its tensors. No pickled code."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_fold.models.factory import build_network
from lightning_fold.rewrites.rebuild import rebuild
from lightning_fold.structure.description import describe
from lightning_fold.surgery import Surgery

_FORMAT = 1


def save(model: nn.Module, path: str | Path, *, network: str, network_args: dict[str, Any] | None = None) -> None:
    """Write ``model`` to ``path`` so that :func:`load` brings it back.

    Args:
        model: the network.
        path: file to write; it is replaced only once the new one is complete.
        network: dotted class path or timm name that builds the network before compression.
        network_args: its arguments, plain values.

    Raises:
        OSError: the file cannot be written; an older file of that name is as it was.
    """
    content = {
        "lightning_fold": _FORMAT,
        "network": network,
        "network_args": dict(network_args or {}),
        "structure": describe(model),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
    }
    write_atomically(content, Path(path))


def load(path: str | Path) -> nn.Module:
    """Bring a compressed network back from the file that :func:`save` wrote, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or was not written by :func:`save`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"lightning_fold.load({str(path)!r}): there is no such file.")
    content = read_checkpoint(path)
    if content.get("lightning_fold") != _FORMAT or "network" not in content:
        raise ValueError(
            f"lightning_fold.load({str(path)!r}): expected a compressed network written by lightning-fold, found a "
            f"file with the keys {sorted(map(str, content))[:8]}. A Lightning checkpoint is loaded by "
            "load_from_checkpoint."
        )
    model = build_network(content["network"], content["network_args"])
    try:
        rebuild(model, content["structure"])
        _match_types(model, content["state_dict"])
        model.load_state_dict(content["state_dict"])
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"lightning_fold.load({str(path)!r}): its parts do not belong together: {error}.") from error
    return model.eval()


def _match_types(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    with Surgery(model) as surgery:
        for name, stored in state.items():
            if surgery.tensor(name).dtype != stored.dtype:
                surgery.transform(name, lambda tensor, dtype=stored.dtype: tensor.to(dtype))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A dict of tensors and plain values from ``path``; no code of the file is run.

    Raises:
        ValueError: the file is not complete, or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read: expected a complete file of tensors and plain values. It is truncated, or "
            f"another program wrote it ({type(error).__name__})."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}; expected a dict.")
    return content


def write_atomically(content: dict[str, Any] | str, path: Path) -> None:
    """Write tensors and plain values, or text, beside ``path`` and put the file in place once it is complete.

    Raises:
        OSError: the file cannot be written; an older file of that name is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(content, str):
                partial.write_text(content)
            else:
                torch.save(content, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{str(path)!r} could not be written: {error}. Free some space or choose another folder."
        ) from error
