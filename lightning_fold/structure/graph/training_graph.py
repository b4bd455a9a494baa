"""Merge the graphs of one network in evaluation and training; shared operators appear once."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from lightning_fold.structure.operators.nodes import argument, family


def merge_training_graph(
    graph: Graph,
    tensors: dict[Node, Tensor],
    names: dict[Node, str],
    more: Graph,
    more_tensors: dict[Node, Tensor],
    more_names: dict[Node, str],
) -> None:
    """Append to ``graph``, ``tensors`` and ``names`` everything that only ``more`` computes.

    Operators with the same operands become one node; dropout is replaced by its operand.

    Args:
        graph: changed in place; afterwards it has the outputs of both graphs.
        tensors: the tensors of its placeholders.
        names: the names of those tensors that the network owns.
        more: the graph to add.
        more_tensors: the tensors of its placeholders.
        more_names: the names of those tensors that the network owns.
    """
    (output,) = (node for node in graph.nodes if node.op == "output")
    placeholders = _Placeholders(graph, tensors, names)
    stands_for: dict[Node, Node] = {}
    same: dict[tuple, Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            stands_for[node] = _through(node, stands_for)
            same.setdefault(_key(node, stands_for), node)
    moved: dict[Node, Node] = {}
    for node in more.nodes:
        if node.op == "placeholder":
            moved[node] = placeholders.find(node, more_tensors.get(node), more_names.get(node))
        elif node.op == "output":
            outputs: Any = output.args[0]
            output.args = ((*outputs, *map_arg(node.args[0], moved.__getitem__)),)
        elif family(node) == "identity" and node.args:
            moved[node] = moved[node.args[0]]
        else:
            key = _key(node, moved)
            if key not in same:
                with graph.inserting_before(output):
                    same[key] = graph.node_copy(node, moved.__getitem__)
            moved[node] = same[key]


class _Placeholders:
    """The inputs and tensors of the graph that receives the other."""

    def __init__(self, graph: Graph, tensors: dict[Node, Tensor], names: dict[Node, str]) -> None:
        self.graph, self.tensors, self.names = graph, tensors, names
        self.by_name = {name: node for node, name in names.items()}
        self.inputs = iter([node for node in graph.nodes if node.op == "placeholder" and node not in tensors])

    def find(self, node: Node, tensor: Tensor | None, name: str | None) -> Node:
        """The placeholder in this graph for ``node`` of the other graph; inputs are matched in order."""
        if tensor is None:
            return next(self.inputs)
        if name is not None:
            return self.by_name[name]
        for other, value in self.tensors.items():
            if other not in self.names and value.dtype == tensor.dtype and torch.equal(value, tensor):
                return other
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            new = self.graph.node_copy(node)
        self.tensors[new] = tensor
        return new


def _through(node: Node, stands_for: dict[Node, Node]) -> Node:
    """``node``, or its operand if it returns that unchanged."""
    source = node.args[0] if family(node) == "identity" and node.args else node
    assert isinstance(source, Node)
    return stands_for.get(source, source)


def _key(node: Node, stands_for: dict[Node, Node]) -> tuple:
    """A key for the result of ``node``: equal for operators that compute the same in evaluation mode."""
    args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda source: stands_for.get(source, source))
    if family(node) == "attention":  # without its dropout
        rest = (("attn_mask", None), ("dropout_p", 0.0), ("is_causal", False), ("scale", None), ("enable_gqa", False))
        options = {key: argument(node, 3 + i, key, default) for i, (key, default) in enumerate(rest)}
        args, kwargs = map_arg((args[:3], options | {"dropout_p": 0.0}), lambda source: stands_for.get(source, source))
    return node.op, node.target, repr(args), repr(kwargs)
