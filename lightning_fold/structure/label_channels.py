"""Which channels belong together: the graph run forwards on labels.

Element-wise operators tie the labels of their operands. A contraction ties the labels it reads to its weight's columns
and returns the labels of its rows. Data movement is executed directly on the labels. Channels that an operator without
a rule reads are pinned: they are kept, and the report says why.
"""

from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.constant_values import Constants
from lightning_fold.structure.graph.trace import Trace, interpret
from lightning_fold.structure.labels import LabelRecorder, Labels
from lightning_fold.structure.rules import rule_of
from lightning_fold.structure.rules.heads import agree_on_sizes, around_attention, tie_whole_heads
from lightning_fold.structure.values import Value, labels_in


def label_channels(trace: Trace, known: Constants, *, ask_attributes: bool = True, whole_heads: bool = False) -> Labels:
    """Run ``trace`` on labels.

    Args:
        trace: the graph.
        known: the value of every node, NaN where it depends on the input; movement reads index tensors from it.
        ask_attributes: whether to assume that the code reads the Python attributes that repeat the size of an attention
            head.
        whole_heads: whether to tie the channels of a head that can only be removed together.
    """
    run = LabelRecorder(trace, known, around_attention(trace, known), ask_attributes=ask_attributes)

    def call(node: Node, args: tuple, kwargs: dict) -> Any:
        rule = rule_of(node)
        if rule is None or not rule.reads_heads:
            args, kwargs = run.without_heads(args, kwargs)
        return run.unknown(node, args, kwargs) if rule is None else rule.labels(run, node, args, kwargs)

    run.labels.values = interpret(trace, lambda node: _placeholder(run, node), call)
    agree_on_sizes(run.labels)
    if whole_heads:
        tie_whole_heads(run.labels)
    for node in trace.outputs:
        run.pin(labels_in(run.labels.values[node]), node, "is an output of the network")
    return run.labels


def _placeholder(run: LabelRecorder, node: Node) -> Any:
    tensor = run.trace.tensors.get(node)
    if tensor is None:
        return tree_map(lambda fake: Value(fake.shape) if isinstance(fake, Tensor) else fake, node.meta["val"])
    if node not in run.trace.names or not node.users or not tensor.is_floating_point():
        return Value(tensor.shape)
    name = run.trace.names[node]
    dims = [dim for dim in range(tensor.dim()) if tensor.shape[dim] > 1]
    return Value(tensor.shape, {dim: run.axis(name, dim, tensor.shape[dim]).labels for dim in dims})
