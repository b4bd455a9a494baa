"""Python attributes of modules that repeat the sizes of their tensors."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_SIZES: list[tuple[type[nn.Module], Callable[[Any], dict[str, Any]]]] = [
    (nn.Linear, lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}),
    (_ConvTransposeNd, lambda m: {"in_channels": m.weight.shape[0], "out_channels": m.weight.shape[1] * m.groups}),
    (_ConvNd, lambda m: {"out_channels": m.weight.shape[0], "in_channels": m.weight.shape[1] * m.groups}),
    (_NormBase, lambda m: {"num_features": _width(m)}),
    (nn.GroupNorm, lambda m: {"num_channels": m.weight.shape[0]} if m.weight is not None else {}),
    (nn.Embedding, lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}),
    (nn.Bilinear, lambda m: dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True))),
    (nn.PReLU, lambda m: {"num_parameters": m.weight.shape[0]}),
]


def refresh_sizes(module: nn.Module) -> None:
    """Set the Python attributes of ``module`` that repeat the sizes of its tensors."""
    for kind, sizes in _SIZES:
        if isinstance(module, kind):
            for attribute, value in sizes(module).items():
                setattr(module, attribute, value)
            return
    weight: Any = getattr(module, "weight", None)
    if hasattr(module, "normalized_shape") and weight is not None:  # LayerNorm, RMSNorm and similar
        vars(module)["normalized_shape"] = tuple(weight.shape)


def set_groups(module: nn.Module, old: int, new: int) -> None:
    """Set the number of groups of a convolution; in other modules, set every integer attribute equal to ``old``."""
    if isinstance(module, _ConvNd):
        module.groups = new
        refresh_sizes(module)
        return
    for name, value in list(vars(module).items()):
        if type(value) is int and value == old:
            setattr(module, name, new)


def _width(norm: _NormBase) -> int:
    tensor = norm.weight if norm.weight is not None else norm.running_mean
    return norm.num_features if tensor is None else tensor.shape[0]
