"""Positive homogeneity: for which channels a positive factor passes unchanged from writers to readers."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_fold.rewrites.channels.producers import Producer, find_producers
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.operators.contractions import contraction_channel, contraction_groups
from lightning_fold.structure.operators.nodes import argument, family, operands, operator_name
from lightning_fold.structure.values import Value

_HOMOGENEOUS = {"relu", "leaky_relu", "neg"}
_SUMS = {"add", "sub"}
_LINEAR_FAMILIES = ("pooling", "movement", "positions", "identity", "cat")


def homogeneous(structure: Structure) -> Tensor:
    """(groups,) whether scaling a channel by a positive factor where it is written scales it where it is read.

    True if the channel only passes through layers, the BatchNorms right after them, ReLU, sums of such channels,
    pooling and operators that move elements.
    """
    result = torch.ones(structure.count, dtype=torch.bool)
    producers = {producer.contraction.node: producer for producer in find_producers(structure)}
    rescaled = _rescaled_axes(structure, producers.values())
    for key, axis in structure.labels.axes.items():
        if key not in rescaled:
            result[structure.groups(axis)] = False
    for labels, _ in structure.columns.unsummed:
        result[structure.group_of[labels]] = False
    for node in structure.trace.graph.nodes:
        if node.op == "call_function":
            for labels in _not_scaled(structure, node, producers):
                result[structure.group_of[labels.flatten()]] = False
    return result


def _rescaled_axes(structure: Structure, producers: Iterable[Producer]) -> set[tuple[str, int]]:
    """The tensor dimensions that a rescaling changes: rows of producers, and columns.

    A weight that is called twice has columns that can be multiplied, but no rows that can be divided.
    """
    rows = {(producer.weight, 1 - producer.contraction.column_dim) for producer in producers}
    rows |= {(name, 0) for producer in producers for name in producer.tensors if name != producer.weight}
    return rows | structure.columns.read


def _not_scaled(structure: Structure, node: Node, producers: dict[Node, Producer]) -> list[Tensor]:
    """The labels of the channels whose scale ``node`` does not pass on."""
    carried = [_carried(value) for source in node.all_input_nodes for value in _parts(structure, source)]
    kept: set[tuple[int, ...]] = set()
    if _scales(node, producers):
        if operator_name(node) in _SUMS:  # a term that all channels share is not scaled with them
            kept = set.intersection(*map(set, carried))
        elif family(node) == "contraction" and operands(node, node.args, node.kwargs)[2] is not None:
            carried = [_carried(value) for value in _parts(structure, operands(node, node.args, node.kwargs)[0])]
            kept = {(contraction_channel(node) - node.meta["val"].dim(),)}  # nor is a bias along other dimensions
        else:
            return []
    return [labels for each in carried for dims, labels in each.items() if dims not in kept]


def _parts(structure: Structure, node: Node) -> list[Value]:
    return [leaf for leaf in tree_leaves(structure.labels.values.get(node)) if isinstance(leaf, Value)]


def _carried(value: Value) -> dict[tuple[int, ...], Tensor]:
    """The labels of ``value`` by the dimensions along which they vary, counted from the last as in broadcasting."""
    rank = len(value.shape)
    over_heads = {tuple(dim - rank for dim in range(rank) if each.shape[dim] > 1): each for each in value.head_labels}
    return {**{(dim - rank,): labels for dim, labels in value.labels.items()}, **over_heads}


def _scales(node: Node, producers: dict[Node, Producer]) -> bool:
    name, kind = operator_name(node), family(node)
    if kind == "batch_norm":
        return node.args[0] in producers and producers[node.args[0]].norm is not None  # pyright: ignore
    if kind == "contraction":
        return contraction_groups(node) == 1
    if kind == "reduction":
        return name in ("mean", "sum", "amax")
    if name in _SUMS:
        return all(isinstance(operand, Node) for operand in node.args[:2])
    if kind == "pad":
        return not argument(node, 2 if name == "constant_pad_nd" else 3, "value", None)
    if kind == "cast":
        return node.meta["val"].is_floating_point()
    return name in _HOMOGENEOUS or kind in _LINEAR_FAMILIES or name == "getitem"
