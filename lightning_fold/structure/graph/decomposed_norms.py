"""Norms that a module writes out as several operators, joined into one operator."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from lightning_fold.layers import CompensatedNorm, CompensatedRMSNorm
from lightning_fold.structure.operators.nodes import (
    argument,
    family,
    operator_name,
    written_layer_norm,
    written_rms_norm,
)


@dataclass(frozen=True)
class _Normed:
    """``value`` divided by its root mean square along ``dim``; ``centred``: its mean is subtracted first."""

    value: Node
    dim: int
    eps: float
    centred: bool
    precision: str | None


@dataclass(frozen=True)
class _Affine:
    """A parameter plus a number, along one dimension (counted from the last, -1) of the value it scales or shifts."""

    parameter: Node
    offset: float
    dim: int


def join_written_norms(graph: Graph, names: Mapping[Node, str], runs: Iterable[tuple[nn.Module, list[Node]]]) -> None:
    """Replace the operators of each compensated norm, or norm written by hand, with one operator.

    Args:
        graph: changed in place.
        names: the network's own tensors among its placeholders.
        runs: modules of the network, each with the operators that it runs directly, in order.
    """
    for module, nodes in runs:
        _keep_casts_inside(nodes)
        left = [node for node in nodes if any(user not in nodes for user in node.users)]
        inputs = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in nodes)
        if len(left) != 1:
            continue  # called more than once, or more than a norm: read as separate operators
        if isinstance(module, CompensatedNorm):
            found = _compensated(module, left[0], list(inputs), names)
        else:
            found = _written(left[0], set(inputs))
        if found is not None:
            _put(graph, found, left[0], nodes)


def _keep_casts_inside(nodes: list[Node]) -> None:
    """Make all but ``nodes`` read the operand of a cast that does not change the type.

    The exporter merges the two, so a residual sum would read the value that a norm in single precision has cast.
    """
    for node in nodes:
        source = node.args[0] if family(node) == "cast" else None
        if isinstance(source, Node) and source.meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(source, delete_user_cb=lambda user: user not in nodes)


def _put(graph: Graph, found: tuple[Any, tuple], last: Node, nodes: list[Node]) -> None:
    with graph.inserting_after(last):
        joined = graph.call_function(*found)
    joined.meta = dict(last.meta)
    last.replace_all_uses_with(joined)
    for node in reversed(nodes):
        graph.erase_node(node)


def _compensated(
    module: CompensatedNorm, last: Node, inputs: list[Node], names: Mapping[Node, str]
) -> tuple[Any, tuple] | None:
    by_shape = [source for source in inputs if source.meta["val"].shape == last.meta["val"].shape]
    held = {names[source].rpartition(".")[2]: source for source in inputs if source in names}
    if len(by_shape) != 1:
        return None
    target = written_rms_norm if isinstance(module, CompensatedRMSNorm) else written_layer_norm
    affine = held["weight"], held.get("bias")
    return target, (by_shape[0], module.dim, *affine, module.eps, module.precision, held["counts"], 0.0)


def _written(last: Node, inputs: set[Node]) -> tuple[Any, tuple] | None:
    """``normed * (weight + offset) + bias``, with or without a bias."""
    last = _uncast(last)
    for scaled, bias in [(last, None), *_pairs(last, "add")]:
        for product, scale in _pairs(_uncast(scaled), "mul"):
            normed, weight, shift = _normed(_uncast(product)), _affine(scale), None if bias is None else _affine(bias)
            if normed is None or weight is None or (bias is not None and (shift is None or shift.offset)):
                continue
            rank = last.meta["val"].dim()
            found = {normed.value, weight.parameter} | ({shift.parameter} if shift is not None else set())
            dims = {normed.dim - rank, weight.dim} | ({shift.dim} if shift is not None else set())
            if found == inputs and len(dims) == 1:
                target = written_layer_norm if normed.centred else written_rms_norm
                parameters = weight.parameter, None if shift is None else shift.parameter
                rest = normed.eps, normed.precision, None, weight.offset
                return target, (normed.value, normed.dim, *parameters, *rest)
    return None


def _normed(node: Any) -> _Normed | None:
    """``x * rsqrt(mean(x * x) + eps)`` or ``x / sqrt(...)``, of ``x`` or of ``x - mean(x)``."""
    inverses = [(x, _operand(inverse, "rsqrt")) for x, inverse in _pairs(node, "mul")]
    inverses += [(x, _operand(root, "sqrt")) for x, root in _pairs(node, "div")[:1]]
    for x, total in inverses:
        power = _operand(total, "add")
        if total is None or power is None or total.kwargs or not isinstance(total.args[1], float):
            continue
        value = _centred(x)
        squared = x if _same(_uncast(x), _uncast(_mean_of_square(power))) else None
        if squared is None and operator_name(power) == "var" and value is not None and _is_biased(power):
            squared = x if _uncast(power.args[0]) is _uncast(value) else None
        dim = _reduced(power)
        if squared is None or dim is None or (value is not None and _reduced(x.args[1]) != dim):
            continue
        source = squared if value is None else value
        kind = str(power.meta["val"].dtype).removeprefix("torch.") if _uncast(source) is not source else None
        return _Normed(_uncast(source), dim, total.args[1], value is not None, kind)
    return None


def _centred(node: Node) -> Node | None:
    """The value that ``node`` centres by its mean along one dimension."""
    if operator_name(node) != "sub" or len(node.args) != 2 or node.kwargs:
        return None
    value, mean = node.args
    return value if isinstance(value, Node) and _operand(mean, "mean") is value else None


def _mean_of_square(node: Node) -> Node | None:
    """The value whose mean square ``node`` is."""
    power = _operand(node, "mean")
    if power is None or (operator_name(power) == "pow" and power.args[1] != 2):
        return None
    return next((value for name in ("pow", "square", "mul") if (value := _operand(power, name)) is not None), None)


def _is_biased(variance: Node) -> bool:
    """Whether ``variance`` is divided by the number of elements."""
    correction = argument(variance, 2, "correction", argument(variance, 2, "unbiased", 1))
    return correction is not None and not correction


def _reduced(node: Any) -> int | None:
    """The one dimension that a mean or variance reduces and keeps with size 1."""
    dims: Any = argument(node, 1, "dim", None)
    keeps = node.meta["val"].dim() == node.args[0].meta["val"].dim()
    return dims[0] % node.meta["val"].dim() if isinstance(dims, list) and len(dims) == 1 and keeps else None


def _affine(node: Any) -> _Affine | None:
    """The parameter behind ``node``, even if it was cast, moved, or increased by a number."""
    shape, offset = node.meta["val"].shape, 0.0
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        same = operator_name(node) == "slice" and node.meta["val"].shape == node.args[0].meta["val"].shape
        if operator_name(node) == "add" and not node.kwargs:
            offset += next(float(number) for number in node.args if not isinstance(number, Node))
        elif family(node) not in ("cast", "movement") and not same:
            return None
        node = node.all_input_nodes[0]
    over_heads = [d - len(shape) for d, size in enumerate(shape) if size > 1]
    plain = node.op == "placeholder" and node.meta["val"].dim() == 1 and len(over_heads) == 1
    return _Affine(node, offset, over_heads[0]) if plain else None


def _same(left: Any, right: Any) -> bool:
    """Whether both compute the same result from the same values."""
    if left is right or not isinstance(left, Node) or not isinstance(right, Node):
        return left is right or (not isinstance(left, Node) and not isinstance(right, Node) and left == right)
    called = left.op == right.op == "call_function" and left.target is right.target and left.kwargs == right.kwargs
    return called and len(left.args) == len(right.args) and all(map(_same, left.args, right.args))


def _pairs(node: Any, name: str) -> list[tuple[Node, Node]]:
    """The operands of an operator of two values, in both orders."""
    values = isinstance(node, Node) and node.op == "call_function" and operator_name(node) == name
    if not values or len(node.all_input_nodes) != 2 or node.kwargs:
        return []
    left, right = node.all_input_nodes
    return [(left, right), (right, left)]


def _operand(node: Any, name: str) -> Node | None:
    """The one operand of ``node`` if it is an operator of this name."""
    if not isinstance(node, Node) or node.op != "call_function" or operator_name(node) != name:
        return None
    return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None


def _uncast(node: Any) -> Any:
    """``node`` before it was cast to another type."""
    while isinstance(node, Node) and node.op == "call_function" and family(node) == "cast":
        node = node.args[0]
    return node
