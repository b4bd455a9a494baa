"""One canonical form: einsum becomes matrix products, and weights become second operands."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from lightning_fold.structure.operators.nodes import operator_name


def write_out_einsum(program: ExportedProgram) -> ExportedProgram:
    """``program`` with every ``einsum`` written as permutations, reshapes and one matrix product."""
    if any(operator_name(node) == "einsum" for node in program.graph.nodes if node.op == "call_function"):
        return program.run_decompositions({torch.ops.aten.einsum.default: einsum})
    return program


def einsum(equation: str, operands: list[Tensor], *, path: Any = None) -> Tensor:
    """The sum ``equation`` over ``operands``; two operands become one matrix product that keeps batch dimensions."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    plain = arrow and "." not in equation and all(len(set(part)) == len(part) for part in [*letters, result])
    if not plain or len(operands) != 2:
        return torch.ops.aten.einsum.default.decompose(equation, operands, path=path)  # pyright: ignore
    left, right = letters
    batch = "".join(x for x in left if x in right and x in result)
    summed = "".join(x for x in left if x in right and x not in result)
    rows, columns = ("".join(x for x in part if x in result and x not in batch) for part in letters)
    if not summed or len(batch + summed + rows) < len(left) or len(batch + summed + columns) < len(right):
        return torch.ops.aten.einsum.default.decompose(equation, operands, path=path)  # pyright: ignore
    first = _arranged(operands[0], left, batch, rows, summed)
    second = _arranged(operands[1], right, batch, summed, columns)
    sizes = dict(zip(left + right, (*operands[0].shape, *operands[1].shape), strict=True))
    product = (first @ second).reshape([sizes[x] for x in batch + rows + columns])
    return product.permute([(batch + rows + columns).index(x) for x in result])


def _arranged(operand: Tensor, letters: str, *parts: str) -> Tensor:
    """``operand`` with the dimensions ``letters`` in the order of ``parts``: the batch, then one dimension each."""
    batch, first, second = parts
    moved = operand.permute([letters.index(x) for part in parts for x in part])
    for part, dim in ((second, len(batch + first)), (first, len(batch))):
        if len(part) != 1:
            moved = moved.flatten(dim, dim + len(part) - 1) if part else moved.unsqueeze(dim)
    return moved


def put_weights_second(graph: Graph, weights: Collection[Node]) -> None:
    """Write a product ``W @ x`` of a matrix that does not depend on the input as ``(x.T @ W.T).T``.

    Args:
        graph: changed in place.
        weights: the placeholders of parameters, buffers and constants.
    """
    fixed: set[Node] = set(weights)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.all_input_nodes and fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
        elif node.op == "call_function" and operator_name(node) in ("matmul", "mm") and node.args[0] in fixed:
            left, right = node.args
            if left.meta["val"].dim() == 2 and right.meta["val"].dim() >= 2:
                _swap(graph, node, left, right)


def _swap(graph: Graph, node: Node, left: Node, right: Node) -> None:
    def call(target: Any, *args: Any) -> Node:
        made = graph.call_function(target, args)
        made.meta = dict(node.meta)
        made.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args))
        return made

    transpose = torch.ops.aten.transpose.int
    with graph.inserting_before(node):
        value, weight = call(transpose, right, -1, -2), call(transpose, left, 0, 1)
        result = call(transpose, call(torch.ops.aten.matmul.default, value, weight), -1, -2)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
