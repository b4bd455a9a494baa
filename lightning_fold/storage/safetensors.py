"""Files of the safetensors format: tensors, and everything else as JSON in the metadata. No code can be in them."""

import json
from pathlib import Path
from typing import Any

from lightning_fold.errors import ArgumentError
from lightning_fold.extras import require

_KEY = "lightning_fold"


def write_safetensors(content: dict[str, Any], path: Path) -> None:
    """Write ``content``, whose entry ``state_dict`` holds tensors and whose others are plain values.

    Tensors that share memory are written once each, since the format knows no sharing.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
    """
    require("a .safetensors file", "safetensors")
    from safetensors.torch import save

    tensors = {name: tensor.contiguous().clone() for name, tensor in content["state_dict"].items()}
    rest = {name: value for name, value in content.items() if name != "state_dict"}
    path.write_bytes(save(tensors, {_KEY: json.dumps(rest)}))  # its own save_file makes files that others cannot read


def read_safetensors(path: Path) -> dict[str, Any]:
    """What :func:`write_safetensors` wrote.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        ValueError: the file is truncated, or another program wrote it.
    """
    require("a .safetensors file", "safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            return {**rest, "state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except SafetensorError as error:
        raise ArgumentError(f"{str(path)!r} cannot be read: expected a complete safetensors file ({error}).") from error
