"""Files in safetensors format: tensors, and everything else as JSON in the metadata. They cannot contain code."""

import json
from pathlib import Path
from typing import Any

from lightning_fold.errors import ArgumentError
from lightning_fold.extras import require

_KEY = "lightning_fold"


def write_safetensors(content: dict[str, Any], path: Path) -> None:
    """Write ``content``: tensors in its entry ``state_dict``, plain values in all others.

    Tensors that share memory are each written in full, since the format does not support sharing.

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    require("a .safetensors file", "safetensors")
    from safetensors.torch import save

    tensors = {name: tensor.contiguous().clone() for name, tensor in content["state_dict"].items()}
    rest = {name: value for name, value in content.items() if name != "state_dict"}
    path.write_bytes(save(tensors, {_KEY: json.dumps(rest)}))  # its save_file makes files that other users cannot read


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read the content that :func:`write_safetensors` wrote.

    Raises:
        MissingPackageError: safetensors is not installed.
        ArgumentError: the file is truncated, or another program wrote it.
    """
    require("a .safetensors file", "safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            return {**rest, "state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except SafetensorError as error:
        raise ArgumentError(f"{str(path)!r} cannot be read: expected a complete safetensors file ({error}).") from error
