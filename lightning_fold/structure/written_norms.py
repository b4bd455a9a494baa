"""Norms that a module writes out as several operators, as the one operator that they are."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from lightning_fold.layers import CompensatedNorm, CompensatedRMSNorm
from lightning_fold.structure.operators import argument, compensated_norm, family, operator_name, written_rms_norm


def join_written_norms(graph: Graph, names: Mapping[Node, str], runs: Iterable[tuple[nn.Module, list[Node]]]) -> None:
    """Put one operator in the place of all that a compensated norm, or an RMSNorm written by hand, computes.

    Args:
        graph: changed in place.
        names: the network's own tensors among its placeholders.
        runs: modules of the network, each with the operators that it runs itself, in order.
    """
    for module, nodes in runs:
        _keep_casts_inside(nodes)
        left = [node for node in nodes if any(user not in nodes for user in node.users)]
        inputs = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in nodes)
        if len(left) != 1:
            continue  # called more than once, or more than a norm: read as the operators that it is
        if isinstance(module, CompensatedNorm):
            found = _compensated(module, left[0], list(inputs), names)
        else:
            found = _rms_norm(left[0], list(inputs))
        if found is not None:
            _put(graph, found, left[0], nodes)


def _keep_casts_inside(nodes: list[Node]) -> None:
    """Let all but ``nodes`` read what stands before a cast to the type that it has.

    The exporter takes the two for one, so that a residual sum reads what a norm in single precision has cast.
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
    weight, bias, counts = held["weight"], held.get("bias"), held["counts"]
    if isinstance(module, CompensatedRMSNorm) and bias is None:
        return written_rms_norm, (by_shape[0], module.dim, weight, module.eps, module.precision, counts)
    return compensated_norm, (by_shape[0], weight, bias, module.dim, counts)


def _rms_norm(last: Node, inputs: list[Node]) -> tuple[Any, tuple] | None:
    """``weight * (x * rsqrt(mean(x * x) + eps))`` over the last dimension, in the order that operators have there."""
    rank = last.meta["val"].dim()
    for weight, scaled in _factors(last):
        for value, inverse in _factors(_uncast(scaled)):
            total = _operand(inverse, "rsqrt")
            mean = _operand(total, "add")
            power = _operand(mean, "mean")
            if power is None or total is None or mean is None:
                continue
            last_dim = argument(mean, 1, "dim", None) in ([-1], [rank - 1]) and argument(mean, 2, "keepdim", False)
            same = _uncast(_squared(power)) is _uncast(value)
            if last_dim and same and {weight, _uncast(value)} == set(inputs) and weight.meta["val"].dim() == 1:
                precision = (
                    str(mean.meta["val"].dtype).removeprefix("torch.")
                    if _uncast(value) is not _squared(power)
                    else None
                )
                return written_rms_norm, (_uncast(value), -1, weight, total.args[1], precision)
    return None


def _factors(node: Any) -> list[tuple[Node, Node]]:
    """The operands of a product of two values, in both orders."""
    values = isinstance(node, Node) and operator_name(node) == "mul" and len(node.all_input_nodes) == 2
    if not values:
        return []
    left, right = node.all_input_nodes
    return [(left, right), (right, left)]


def _operand(node: Any, name: str) -> Node | None:
    """The one operand of ``node`` if it is an operator of this name."""
    if not isinstance(node, Node) or node.op != "call_function" or operator_name(node) != name:
        return None
    return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None


def _squared(node: Node) -> Node | None:
    """What ``node`` is the square of."""
    if operator_name(node) == "pow" and node.args[1] != 2:
        return None
    return next((value for name in ("pow", "square", "mul") if (value := _operand(node, name)) is not None), None)


def _uncast(node: Any) -> Any:
    """``node`` before it was cast to another type."""
    while isinstance(node, Node) and node.op == "call_function" and family(node) == "cast":
        node = node.args[0]
    return node
