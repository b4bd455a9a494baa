"""Which family an ATen operator belongs to: the only place that names operators.

Data-movement operators are executed as they are on symbolic values, so they are listed and need no rule of their own.
Operators that compute each output element from one element of each input carry ATen's own ``pointwise`` tag.
"""

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

_MOVEMENT = {
 "alias", "chunk", "clone", "contiguous", "detach", "expand", "expand_as", "flatten", "lift_fresh_copy", "movedim",
    "permute", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "repeat", "reshape", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as", "_unsafe_view",
}  # fmt: skip
# Data movement that names positions in the network's code: along these dimensions nothing can be removed.
_POSITIONS = {"flip", "index", "index_select", "narrow", "roll", "select", "slice", "unfold"}
# Element by element, although ATen does not say so.
_POINTWISE = {"hardswish", "log_sigmoid", "rsub", "type_as", "zeros_like", "ones_like", "full_like"}  # fmt: skip
_IDENTITY = {"dropout", "feature_dropout", "alpha_dropout", "_assert_tensor_metadata", "lift_fresh"}
_POOLING = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "max_pool2d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
}  # fmt: skip
_REDUCTION = {"mean", "sum", "amax", "amin", "var", "std", "logsumexp"}

FAMILIES: dict[str, str] = {
    **dict.fromkeys(_MOVEMENT, "movement"),
    **dict.fromkeys(_IDENTITY, "identity"),
    **dict.fromkeys(_POOLING, "pooling"),
    **dict.fromkeys(_REDUCTION, "reduction"),
    **dict.fromkeys(_POSITIONS, "positions"),
    **dict.fromkeys(_POINTWISE, "pointwise"),
    **dict.fromkeys(("to", "_to_copy"), "cast"),
    **dict.fromkeys(("pad", "constant_pad_nd"), "pad"),
    "cat": "cat",
    "linear": "contraction",
    "conv1d": "contraction",
    "conv2d": "contraction",
    "conv3d": "contraction",
    "batch_norm": "batch_norm",
    "softmax": "softmax",
    "log_softmax": "softmax",
    "mul": "product",
    "prelu": "prelu",
    "glu": "glu",
}


def operator_name(node: Node) -> str:
    """The operator's name without namespace, overload and the underscore of in-place variants: ``relu``."""
    packet = getattr(node.target, "_overloadpacket", None)
    return packet.__name__.removesuffix("_") if packet is not None else str(node.target)


def family(node: Node) -> str:
    """The family of ``node``'s operator, ``"pointwise"`` by ATen's tag, or ``"unknown"``."""
    name = operator_name(node)
    if name in FAMILIES:
        return FAMILIES[name]
    tags = getattr(node.target, "tags", ())
    return "pointwise" if torch.Tag.pointwise in tags else "unknown"


def is_in_place(node: Node) -> bool:
    """Whether ``node``'s operator changes its first operand."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and family(node) != "identity"


def is_view(node: Node) -> bool:
    """Whether the value of ``node`` may share memory with an operand."""
    return node.op == "call_function" and (node.target is getitem or family(node) in ("movement", "positions"))


def functional(node: Node) -> Callable[..., Any]:
    """The operator of ``node``, for any strides and changing none: ``relu_`` runs as ``relu``, a view as a reshape."""
    target: Any = node.target
    if operator_name(node) in ("view", "_unsafe_view") and target._overloadname == "default":
        return torch.ops.aten.reshape.default
    packet = getattr(target, "_overloadpacket", None)
    if packet is None or not packet.__name__.endswith("_") or packet.__name__.endswith("__"):
        return target
    twin = getattr(torch.ops.aten, packet.__name__.removesuffix("_"))
    return getattr(twin, target._overloadname, twin)


def compact(value: Tensor) -> Tensor:
    """``value`` with every dimension along which it is only repeated (stride 0) narrowed to 1."""
    for dim in range(value.dim()):
        if value.shape[dim] > 1 and value.stride(dim) == 0:
            value = value.narrow(dim, 0, 1)
    return value


def restride(value: Tensor) -> Tensor:
    """``value`` with stride 0 along every dimension where its elements turn out not to vary (NaN equals NaN)."""
    shape = value.shape
    value = compact(value)
    for dim in range(value.dim()):
        if value.shape[dim] > 1:
            first = value.narrow(dim, 0, 1)
            if bool(((value == first) | ((value != value) & (first != first))).all()):
                value = first
    return value.expand(shape)
