"""Which values do not depend on the input: the graph run forwards on real tensors in which NaN means "depends".

Element-wise operators and data movement propagate NaN by themselves and run as they are. A contraction's output is
known where every non-zero weight meets a known value; a product with a known zero is zero. A value that is repeated
along a dimension is held once (stride 0), so the cost is that of the channels, not of the images.
"""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.structure.operators import compact, family, functional, operator_name, restride
from lightning_fold.structure.trace import Trace, interpret

Values = dict[Node, Any]


class _Unknown:
    """Stands for an integer or boolean tensor that depends on the input, where NaN cannot say so."""


UNKNOWN = _Unknown()

# Largest rounding error of a mean of equal numbers, in units of the type's precision.
_ROUNDINGS = 64


def constants(trace: Trace) -> Values:
    """The value of every node of the graph: NaN where it depends on the input.

    Returns:
        ``{node: tensor}``, a list of tensors for operators with several outputs, ``UNKNOWN`` for a value of an
        integer or boolean type that depends on the input.
    """
    fed: set[Node] = set()
    for node in trace.graph.nodes:
        if (node.op == "placeholder" and node not in trace.tensors) or fed.intersection(node.all_input_nodes):
            fed.add(node)

    def call(node: Node, args: tuple, kwargs: dict) -> Any:
        if node not in fed:
            return _compute(node, args, kwargs)
        return unknown(node) if _is_lost(node, args, kwargs) else _RULES[family(node)](node, args, kwargs)

    with torch.no_grad():
        return interpret(trace, lambda node: trace.tensors.get(node, unknown(node)), call)


def channel_constants(value: Any, dim: int) -> Tensor | None:
    """The value of each channel along ``dim`` where it is one number for all positions and inputs, else NaN."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    moved = compact(value).movedim(dim, 0).flatten(1)
    first = moved[:, 0]
    uniform = torch.where((moved == first[:, None]).all(1), first, torch.nan)
    return uniform.expand(value.shape[dim])


def unknown(node: Node) -> Any:
    """The value that says: depends on the input."""
    return tree_map(_unknown_like, node.meta.get("val"))


def _unknown_like(fake: Any) -> Any:
    if not isinstance(fake, Tensor) or not fake.is_floating_point():
        return UNKNOWN
    return torch.full((), torch.nan, dtype=fake.dtype, device=fake.device).expand(fake.shape)


def _compute(node: Node, args: tuple, kwargs: dict) -> Any:
    """A value made of parameters alone: whatever the operator, it is computed."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or not isinstance(node.target, OpOverload) or _has_unknown(args, kwargs):
        return unknown(node)
    return tree_map(_tidy, functional(node)(*args, **kwargs))


def _is_lost(node: Node, args: tuple, kwargs: dict) -> bool:
    return family(node) not in _RULES or _has_unknown(args, kwargs)


def _has_unknown(args: tuple, kwargs: dict) -> bool:
    return any(leaf is UNKNOWN for leaf in tree_leaves((args, kwargs)))


def depends(value: Any) -> bool:
    """Whether any element of ``value`` is not known."""
    return isinstance(value, Tensor) and value.is_floating_point() and bool(compact(value).isnan().any())


def _tidy(value: Any) -> Any:
    return restride(value) if isinstance(value, Tensor) else value


def _move(node: Node, args: tuple, kwargs: dict) -> Any:
    return tree_map(_tidy, functional(node)(*args, **kwargs))


def _pointwise(node: Node, args: tuple, kwargs: dict) -> Any:
    # Not every operator hands NaN on (hardswish, comparisons), so known and unknown are computed apart.
    if not node.meta["val"].is_floating_point():
        return unknown(node)
    leaves = [compact(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    depends = torch.stack(torch.broadcast_tensors(*(leaf != leaf for leaf in leaves))).any(0)
    args, kwargs = tree_map(lambda leaf: _filled(leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return torch.where(depends, torch.nan, functional(node)(*args, **kwargs)).expand(node.meta["val"].shape)


def _filled(value: Tensor) -> Tensor:
    value = compact(value)
    return value.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf) if value.is_floating_point() else value


def _product(node: Node, args: tuple, kwargs: dict) -> Any:
    product = _pointwise(node, args, kwargs)
    if product is UNKNOWN:
        return product
    for factor in args[:2]:
        zero = compact(factor) == 0 if isinstance(factor, Tensor) else torch.tensor(factor == 0)
        product = torch.where(zero, 0.0, product)
    return restride(product)


def _pool(node: Node, args: tuple, kwargs: dict) -> Any:
    given = channel_constants(args[0], 1)
    if given is None:
        return unknown(node)
    pooled = functional(node)(along(given.nan_to_num(), 1, args[0].shape), *args[1:], **kwargs)
    pooled, *indices = pooled if isinstance(pooled, tuple) else (pooled,)
    # A mean of equal numbers is that number up to rounding; with zeros padded into it, it is not.
    rtol = torch.finfo(given.dtype).eps * _ROUNDINGS
    same = pooled.flatten(2).transpose(0, 1).flatten(1).isclose(given[:, None], rtol=rtol, atol=0.0).all(1)
    pooled = along(torch.where(same, given, torch.nan), 1, pooled.shape)
    return pooled if not indices else (pooled, UNKNOWN)


def _cast(node: Node, args: tuple, kwargs: dict) -> Any:
    fake = node.meta["val"]
    both = fake.is_floating_point() and args[0].is_floating_point()
    return args[0].to(dtype=fake.dtype, device=fake.device) if both else unknown(node)


def _prelu(node: Node, args: tuple, kwargs: dict) -> Any:
    value, slope = compact(args[0]), args[1]
    slope = slope.reshape(1, -1, *[1] * (value.dim() - 2)) if value.dim() > 1 else slope
    return restride(torch.where(value > 0, value, value * slope).expand(args[0].shape))


def _reduce(node: Node, args: tuple, kwargs: dict) -> Any:
    # Only what is one number along the reduced dimensions is known, and only where its reduction is that number:
    # a sum depends on the size of the image.
    if operator_name(node) not in ("mean", "amax", "amin"):
        return unknown(node)
    first, *rest = args
    dims = rest[0] if rest else kwargs.get("dim", ())
    for dim in [dims] if isinstance(dims, int) else dims or range(first.dim()):
        start = first.narrow(dim, 0, 1)
        first = torch.where((first == start).all(dim, keepdim=True), start, torch.nan)
    return restride(first.reshape(node.meta["val"].shape))


def _contraction(node: Node, args: tuple, kwargs: dict) -> Any:
    value, weight = args[:2]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if depends(weight) or depends(bias):
        return unknown(node)
    channel = contraction_channel(node)
    matrix = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    nonzero = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    given = channel_constants(value, channel)
    if given is None:
        return unknown(node)
    needed = given.isnan() | ((given != 0) & is_padded(node))
    groups = contraction_groups(node)
    given, needed = given.nan_to_num().reshape(groups, -1), needed.reshape(groups, -1)
    rows = weight.shape[0] // groups
    unreached = ~(nonzero.reshape(groups, rows, -1) & needed[:, None]).any(2)
    result = (matrix.reshape(groups, rows, -1) * given[:, None]).sum(2)
    result = torch.where(unreached, result, torch.nan).flatten()
    if bias is not None:
        result = result + bias
    return along(result, channel, node.meta["val"].shape)


def _batch_norm(node: Node, args: tuple, kwargs: dict) -> Tensor:
    value, gamma, beta, mean, variance = args[:5]
    given = channel_constants(value, 1)
    if given is None or mean is None or args[5]:  # args[5]: normalises with the batch's own statistics
        return unknown(node)
    scaled = (given - mean) * torch.rsqrt(variance + args[7])
    if gamma is not None:
        scaled = torch.where(gamma == 0, 0, scaled * gamma)
    if beta is not None:
        scaled = scaled + beta
    return along(scaled, 1, value.shape)


def along(vector: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """``vector`` repeated to ``shape`` with its elements along ``dim``."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.reshape(view).expand(shape)


def contraction_channel(node: Node) -> int:
    """The dimension of a linear or convolution's input and output that holds the channels."""
    rank = node.meta["val"].dim()
    return rank - 1 if operator_name(node) == "linear" else rank - 1 - int(operator_name(node)[-2])


def contraction_groups(node: Node) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    return 1 if operator_name(node) == "linear" else int(_conv_argument(node, 6, "groups", 1))


def is_padded(node: Node) -> bool:
    """Whether zeros stand around the input, so that a constant channel is not constant near the border."""
    if operator_name(node) == "linear":
        return False
    padding = _conv_argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        weight: Any = node.args[1]
        return padding != "valid" and weight.meta["val"].shape[2:].numel() > 1
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _conv_argument(node: Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


_RULES = {
    "movement": _move,
    "positions": _move,
    "cast": _cast,
    "prelu": _prelu,
    "pad": _move,
    "cat": _move,
    "identity": lambda node, args, kwargs: args[0],
    "pooling": _pool,
    "reduction": _reduce,
    "pointwise": _pointwise,
    "product": _product,
    "contraction": _contraction,
    "batch_norm": _batch_norm,
}
