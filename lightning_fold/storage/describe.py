"""The structure of a network as a plain dict, which a checkpoint needs in addition to the tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.class_paths import class_path
from lightning_fold.errors import ArgumentTypeError

StructureDict = dict[str, dict[str, Any]]

_PLAIN = (int, float, bool, str)


def describe(model: nn.Module) -> StructureDict:
    """The type, the tensor shapes and the plain Python attributes of every module of ``model``.

    Returns:
        ``{path: {"type": dotted class name, "shapes": {tensor: [sizes]}, "attributes": {name: value}}}``, made of
        only strings, numbers, booleans, lists and ``None``, so that it loads with ``weights_only=True`` and as JSON.
    """
    return {path: _describe(module) for path, module in model.named_modules()}


def type_name(module: nn.Module) -> str:
    """The public dotted path of the class of ``module``."""
    return class_path(type(module))


def plain(value: Any) -> Any:
    """``value`` as strings, numbers and lists; tuples become lists.

    Raises:
        ArgumentTypeError: ``value`` is of another kind.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, (list, tuple, torch.Size)):
        return [plain(element) for element in value]
    raise ArgumentTypeError(f"expected a string, number, boolean, None or a list of these; found {value!r}")


def _describe(module: nn.Module) -> dict[str, Any]:
    tensors = {**module._parameters, **module._buffers}
    return {
        "type": type_name(module),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)},
        "attributes": {
            name: plain(value)
            for name, value in vars(module).items()
            if not name.startswith("_") and name != "training" and _is_plain(value)
        },
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(element) for element in value)
    return value is None or type(value) in _PLAIN
