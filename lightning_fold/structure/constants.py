"""Which values do not depend on the input: the graph run forwards on real tensors in which NaN means "depends".

Element-wise operators and data movement propagate NaN by themselves and run unchanged. A contraction's output is known
where every non-zero weight meets a known value; a product with a known zero is zero. A value that is repeated along a
dimension is stored once (stride 0), so the cost depends on the number of channels, not on the size of the images.
"""

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.constant_values import Constants, has_unknown, tidy, unknown
from lightning_fold.structure.graph.trace import Trace, interpret
from lightning_fold.structure.operators.nodes import family, functional
from lightning_fold.structure.rules import rule_of


def constants(trace: Trace) -> Constants:
    """The value of every node of the graph: NaN where it depends on the input.

    Returns:
        ``{node: tensor}``; a list of tensors for operators with several outputs; ``UNKNOWN`` for a value of an
        integer or boolean type that depends on the input.
    """
    fed: set[Node] = set()
    for node in trace.graph.nodes:
        if (node.op == "placeholder" and node not in trace.tensors) or fed.intersection(node.all_input_nodes):
            fed.add(node)

    def call(node: Node, args: tuple, kwargs: dict) -> Any:
        if node not in fed:
            return _compute(node, args, kwargs)
        rule = rule_of(node)
        if rule is None or rule.constants is None or _is_lost(node, args, kwargs):
            return unknown(node)
        return rule.constants(node, args, kwargs)

    with torch.no_grad():
        return interpret(trace, lambda node: trace.tensors.get(node, unknown(node)), call)


def _compute(node: Node, args: tuple, kwargs: dict) -> Any:
    """A value that depends on parameters alone: computed for any operator that is not random."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or not isinstance(node.target, OpOverload) or has_unknown(args, kwargs):
        return unknown(node)
    return tree_map(tidy, functional(node)(*args, **kwargs))


def _is_lost(node: Node, args: tuple, kwargs: dict) -> bool:
    read = args[:1] if family(node) == "embedding" else args  # its indices need not be known
    return has_unknown(read, kwargs)
