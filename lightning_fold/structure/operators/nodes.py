"""The operators of a graph: their names, families and arguments.

An operator is identified by its namespace and name: ``mine::dropout`` has nothing in common with ``aten::dropout``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.operators.families import FAMILIES, NEW, REGISTERED, WRITTEN_NORMS, Registration

_SHAPED_LIKE = {"expand_as", "reshape_as", "type_as", "view_as"}
_SAME = {"alias", "clone", "contiguous", "detach", "expand"}


def registered(node: Node) -> Registration | None:
    """The registration of ``node``'s operator, for this overload or for all; ``None`` if there is none."""
    target = node.target
    if not isinstance(target, OpOverload):
        return None
    return REGISTERED.get(overload_name(target)) or REGISTERED.get(target._overloadpacket._qualified_op_name)


def overload_name(overload: OpOverload) -> str:
    """Namespace, name and overload: ``aten::add.Tensor``."""
    return f"{overload._overloadpacket._qualified_op_name}.{overload._overloadname}"


def is_aten(target: Any) -> bool:
    """Whether an operator is one of ATen's."""
    return getattr(target, "namespace", None) == "aten"


def operator_name(node: Node) -> str:
    """ATen's name of the operator, or of the one it was registered like, without overload: ``relu``.

    In-place variants have no underscore. An operator of another namespace has its full name, ``mine::relu``, which no
    ATen operator has.
    """
    found = registered(node)
    return found.name if found is not None and found.name else full_name(node)


def full_name(node: Node) -> str:
    """The operator's own name for reports: ``relu`` for ATen's, ``mine::relu`` for one of another namespace."""
    target: Any = node.target
    if isinstance(target, OpOverload):
        name = target._overloadpacket._qualified_op_name
        return name.removeprefix("aten::").removesuffix("_") if is_aten(target) else name
    if isinstance(target, HigherOrderOperator):  # for example, around an operator that changes its arguments
        inner = (arg._overloadpacket._qualified_op_name for arg in node.args if isinstance(arg, OpOverload))
        return next(inner, f"higher_order::{target.__name__}")
    return getattr(target, "__name__", "")


def family(node: Node) -> str:
    """The family of ``node``'s operator, ``"pointwise"`` by its tag, or ``"unknown"``."""
    found = registered(node)
    if found is not None:
        return found.family
    return family_of(node.target, operator_name(node))


def family_of(target: Any, name: str) -> str:
    """The family of an operator that is not registered, given its ``operator_name``."""
    if name in FAMILIES:
        return FAMILIES[name]
    return "pointwise" if torch.Tag.pointwise in getattr(target, "tags", ()) else "unknown"


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
    """Represents in a graph a LayerNorm written by hand, or a compensated one; it is never run.

    The norm is computed in ``precision``; each channel counts ``counts`` times and is scaled by ``weight + offset``.
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
    """Represents in a graph an RMSNorm written by hand, or a compensated one; it is never run."""
    raise NotImplementedError


def channel_share(value: Tensor, dim: int, added: float, scale: Tensor | None) -> Tensor:
    """Represents in a graph ``value / (value.mean(dim, keepdim=True) + added)``; it is never run.

    ``scale`` is the tensor that scales only the product of this with another value.
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
    """The number that a LayerNorm or RMSNorm adds; ``None`` for the machine epsilon of its type."""
    name = operator_name(node)
    return argument(node, 3, "eps", None) if name == "rms_norm" else argument(node, 4, "eps", 1e-5)


def norm_precision(node: Node) -> str | None:
    """The dtype in which a written-out norm computes, if it differs from that of its input."""
    precision: Any = node.args[5] if operator_name(node) in WRITTEN_NORMS else None
    return precision


def norm_counts(node: Node) -> Any:
    """The node of a norm's counts (how many channels each one stands for), or ``None``."""
    return node.args[6] if operator_name(node) in WRITTEN_NORMS else None


def norm_offset(node: Node) -> float:
    """The number that a written-out norm adds to its weight."""
    offset: Any = node.args[7] if operator_name(node) in WRITTEN_NORMS else 0.0
    return offset


def norm_tensors(node: Node) -> tuple[Any, ...]:
    """The tensors of a LayerNorm or RMSNorm that have one value for each channel."""
    return tuple(tensor for tensor in (*norm_affine(node), norm_counts(node)) if tensor is not None)


def batch_norm_eps(node: Node) -> float:
    """The number that a BatchNorm adds to the variance."""
    eps: Any = node.args[7 if operator_name(node) == "batch_norm" else 6]
    return eps


def batch_norm_behind(node: Node) -> Node | None:
    """The BatchNorm that is the only reader of ``node``, or ``None``."""
    users = list(node.users)
    alone = len(users) == 1 and family(users[0]) == "batch_norm" and users[0].args[0] is node
    return users[0] if alone else None


def softmax_over(node: Any) -> bool:
    """Whether the value of ``node`` is a softmax over its last dimension, so that its rows sum to 1."""
    while isinstance(node, Node) and (family(node) == "identity" or operator_name(node) in _SAME):
        node = node.args[0]
    return isinstance(node, Node) and operator_name(node) in ("softmax", "_softmax") and _is_last(node)


def feeds_softmax(node: Node) -> bool:
    """Whether only softmaxes over the last dimension read ``node``, so that rows may shift by a constant."""
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
    """An argument of ``node``, passed by position or by name."""
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
    """The operands of which ``node`` reads only the shape or the type."""
    if operator_name(node) in NEW:
        return tuple(node.all_input_nodes)
    return tuple(node.all_input_nodes[1:]) if operator_name(node) in _SHAPED_LIKE else ()


def is_view(node: Node) -> bool:
    """Whether the value of ``node`` may share memory with an operand."""
    return node.op == "call_function" and (node.target is getitem or family(node) in ("movement", "positions"))


def functional(node: Node) -> Callable[..., Any]:
    """The operator of ``node``, for any strides and out of place: ``relu_`` runs as ``relu``, a view as a reshape."""
    target: Any = node.target
    if not is_aten(target):
        return partial(_run_contiguous, target)
    if operator_name(node) in ("view", "_unsafe_view") and target._overloadname == "default":
        return torch.ops.aten.reshape.default
    packet = target._overloadpacket
    if not packet.__name__.endswith("_") or packet.__name__.endswith("__"):
        return target
    twin = getattr(torch.ops.aten, packet.__name__.removesuffix("_"))
    return getattr(twin, target._overloadname, twin)


def _run_contiguous(operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run ``operator`` on contiguous tensors: kernels from elsewhere may not support the strides of 0 used here."""
    args, kwargs = tree_map(lambda leaf: leaf.contiguous() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return operator(*args, **kwargs)


def moving(node: Node) -> Callable[..., Any]:
    """The operator that moves labels as ``node`` moves elements; ATen's own if ``node`` was registered like one."""
    found = registered(node)
    if found is None or not found.name:
        return functional(node)
    return getattr(torch.ops.aten, "reshape" if found.name in ("view", "_unsafe_view") else found.name)


def compact(value: Tensor) -> Tensor:
    """``value`` with every repeated dimension (stride 0) narrowed to size 1."""
    for dim in range(value.dim()):
        if value.shape[dim] > 1 and value.stride(dim) == 0:
            value = value.narrow(dim, 0, 1)
    return value


def restride(value: Tensor) -> Tensor:
    """``value`` with stride 0 along every dimension where its elements do not vary (NaN equals NaN)."""
    shape = value.shape
    value = compact(value)
    for dim in range(value.dim()):
        if value.shape[dim] > 1:
            first = value.narrow(dim, 0, 1)
            if bool(((value == first) | ((value != value) & (first != first))).all()):
                value = first
    return value.expand(shape)
