"""Which family an ATen operator belongs to: the only place that names operators.

Data-movement operators are executed as they are on symbolic values, so they are listed and need no rule of their own.
Operators that compute each output element from one element of each input carry ATen's own ``pointwise`` tag.
"""

from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

_MOVEMENT = {
    "_unsafe_view", "adjoint", "alias", "chunk", "clone", "contiguous", "detach", "expand",
    "expand_as", "flatten", "lift_fresh_copy", "mH", "mT", "moveaxis", "movedim", "numpy_T", "permute",
    "pixel_unshuffle", "ravel", "repeat", "repeat_interleave", "reshape", "reshape_as", "split",
    "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "tile", "transpose", "unbind",
    "unflatten", "unsafe_chunk", "unsafe_split", "unsqueeze", "view", "view_as",
}  # fmt: skip
# Data movement that names positions in the network's code: along these dimensions nothing can be removed.
_POSITIONS = {"flip", "index", "index_select", "narrow", "roll", "select", "slice", "unfold"}
# Element by element, although ATen does not say so.
_POINTWISE = {"hardswish", "log_sigmoid", "rsub", "zeros_like", "ones_like", "full_like"}  # fmt: skip
_IDENTITY = {"dropout", "feature_dropout", "alpha_dropout", "_assert_tensor_metadata", "lift_fresh"}
_SHAPED_LIKE = {"expand_as", "reshape_as", "type_as", "view_as"}
_NEW = {"new_empty", "new_full", "new_ones", "new_zeros"}
_SAME = {"alias", "clone", "contiguous", "detach", "expand"}
_POOLING = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d",
    "max_pool2d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact3d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
}  # fmt: skip
_REDUCTION = {"mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm"}

# Names of the functions below that stand for a norm which a module writes out.
WRITTEN_NORMS = ("written_layer_norm", "written_rms_norm")

FAMILIES: dict[str, str] = {
    **dict.fromkeys(_MOVEMENT, "movement"),
    **dict.fromkeys(_IDENTITY, "identity"),
    **dict.fromkeys(_POOLING, "pooling"),
    **dict.fromkeys(_REDUCTION, "reduction"),
    **dict.fromkeys(_POSITIONS, "positions"),
    **dict.fromkeys(_POINTWISE, "pointwise"),
    **dict.fromkeys(("to", "_to_copy", "type_as"), "cast"),
    **dict.fromkeys(_NEW, "new"),
    **dict.fromkeys(("pad", "constant_pad_nd"), "pad"),
    **dict.fromkeys(("cat", "concat"), "cat"),
    "stack": "stack",
    **dict.fromkeys(("pixel_shuffle", "channel_shuffle", "native_channel_shuffle"), "shuffle"),
    **dict.fromkeys(("im2col", "col2im"), "patches"),
    "bilinear": "bilinear",
    "linear": "contraction",
    "conv1d": "contraction",
    "conv2d": "contraction",
    "conv3d": "contraction",
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "contraction"),
    **dict.fromkeys(("matmul", "mm", "addmm", "bmm"), "matmul"),
    "scaled_dot_product_attention": "attention",
    "batch_norm": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "instance_norm": "instance_norm",
    "group_norm": "group_norm",
    **dict.fromkeys(("layer_norm", "rms_norm", *WRITTEN_NORMS), "layer_norm"),
    "channel_share": "global_response_norm",
    "embedding": "embedding",
    "softmax": "softmax",
    "log_softmax": "softmax",
    "mul": "product",
    "prelu": "prelu",
    "glu": "glu",
}


def operator_name(node: Node) -> str:
    """The operator's name without namespace, overload and the underscore of in-place variants: ``relu``."""
    packet = getattr(node.target, "_overloadpacket", None)
    return packet.__name__.removesuffix("_") if packet is not None else getattr(node.target, "__name__", "")


def family(node: Node) -> str:
    """The family of ``node``'s operator, ``"pointwise"`` by ATen's tag, or ``"unknown"``."""
    name = operator_name(node)
    if name in FAMILIES:
        return FAMILIES[name]
    tags = getattr(node.target, "tags", ())
    return "pointwise" if torch.Tag.pointwise in tags else "unknown"


def written_layer_norm(
    value: Tensor,
    dim: int,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    precision: str | None,
    counts: Tensor | None,
    offset: float,
) -> Tensor:
    """Stands in a graph for a LayerNorm written by hand, or a compensated one; it is read and never run.

    Computed in ``precision``; each channel counts ``counts`` times and is scaled by ``weight + offset``.
    """
    raise NotImplementedError


def written_rms_norm(
    value: Tensor,
    dim: int,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    precision: str | None,
    counts: Tensor | None,
    offset: float,
) -> Tensor:
    """The same for an RMSNorm."""
    raise NotImplementedError


def channel_share(value: Tensor, dim: int, added: float, scale: Tensor | None) -> Tensor:
    """Stands in a graph for ``value / (value.mean(dim, keepdim=True) + added)``; it is read and never run.

    ``scale`` is the tensor that scales the product of this with another value, and nothing else.
    """
    raise NotImplementedError


def normalised_dims(node: Node) -> tuple[int, ...]:
    """The dimensions that a LayerNorm or RMSNorm takes its statistics over."""
    rank = node.meta["val"].dim()
    given: Any = node.args[1]
    return (given % rank,) if operator_name(node) in WRITTEN_NORMS else tuple(range(rank - len(given), rank))


def norm_affine(node: Node) -> tuple[Any, Any]:
    """The weight and the bias of a normalisation: nodes, or ``None``."""
    name = operator_name(node)
    start = 2 if family(node) == "layer_norm" or name == "group_norm" else 1
    weight, bias = (argument(node, start + i, key, None) for i, key in enumerate(("weight", "bias")))
    return weight, None if name == "rms_norm" else bias


def norm_eps(node: Node) -> float | None:
    """The number that a LayerNorm or RMSNorm adds; ``None`` for the smallest of its type."""
    name = operator_name(node)
    return argument(node, 3, "eps", None) if name == "rms_norm" else argument(node, 4, "eps", 1e-5)


def norm_precision(node: Node) -> str | None:
    """The type that a norm which a module writes out computes in, where that is not the type of its input."""
    precision: Any = node.args[5] if operator_name(node) in WRITTEN_NORMS else None
    return precision


def norm_counts(node: Node) -> Any:
    """How many channels each one stands for, where a norm counts them: a node, or ``None``."""
    return node.args[6] if operator_name(node) in WRITTEN_NORMS else None


def norm_offset(node: Node) -> float:
    """The number that a norm which a module writes out adds to its weight."""
    offset: Any = node.args[7] if operator_name(node) in WRITTEN_NORMS else 0.0
    return offset


def norm_tensors(node: Node) -> tuple[Any, ...]:
    """All that a LayerNorm or RMSNorm holds for each channel."""
    return tuple(tensor for tensor in (*norm_affine(node), norm_counts(node)) if tensor is not None)


def batch_norm_eps(node: Node) -> float:
    """The number that a BatchNorm adds to the variance."""
    eps: Any = node.args[7 if operator_name(node) == "batch_norm" else 6]
    return eps


def batch_norm_behind(node: Node) -> Node | None:
    """The BatchNorm that alone reads what ``node`` computes."""
    users = list(node.users)
    alone = len(users) == 1 and family(users[0]) == "batch_norm" and users[0].args[0] is node
    return users[0] if alone else None


def softmax_over(node: Any) -> bool:
    """Whether the value of ``node`` is a softmax over its last dimension, so that its rows sum to 1."""
    while isinstance(node, Node) and (family(node) == "identity" or operator_name(node) in _SAME):
        node = node.args[0]
    return isinstance(node, Node) and operator_name(node) in ("softmax", "_softmax") and _is_last(node)


def feeds_softmax(node: Node) -> bool:
    """Whether nothing but softmaxes over the last dimension reads ``node``, so that rows may move by a constant."""
    for user in node.users:
        name = operator_name(user)
        if name == "softmax" and _is_last(user):
            continue
        scaled = name in ("mul", "div") and not isinstance(user.args[1], Node)
        added = name == "add" and user.kwargs.get("alpha", 1) == 1
        moved = name in ("view", "reshape", *_SAME) and user.meta["val"].shape[-1] == node.meta["val"].shape[-1]
        if not (scaled or added or moved or family(user) == "identity") or not feeds_softmax(user):
            return False
    return bool(node.users)


def _is_last(node: Node) -> bool:
    dim: Any = argument(node, 1, "dim", None)
    return dim % node.meta["val"].dim() == node.meta["val"].dim() - 1


def argument(node: Node, position: int, name: str, default: Any) -> Any:
    """An argument of ``node``, however it was passed."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operands(node: Node, args: tuple, kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The value, the weight and the bias of a contraction, out of its arguments (nodes or values)."""
    if operator_name(node) == "addmm":
        return args[1], args[2], args[0]
    return args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")


def is_in_place(node: Node) -> bool:
    """Whether ``node``'s operator changes its first operand."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and family(node) != "identity"


def shape_operands(node: Node) -> tuple[Node, ...]:
    """The operands of which ``node`` reads nothing but the shape or the type."""
    if operator_name(node) in _NEW:
        return tuple(node.all_input_nodes)
    return tuple(node.all_input_nodes[1:]) if operator_name(node) in _SHAPED_LIKE else ()


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
