"""Symbolic values of the run on labels: which channels the dimensions of a tensor hold."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, and the channels that it holds.

    Attributes:
        shape: its shape.
        labels: the labels along each dimension that holds channels.
        head_labels: the labels of channels over several dimensions, as (head, channel of the head): each has the rank
            of the value, and size 1 where it does not vary.
    """

    shape: torch.Size
    labels: dict[int, Tensor] = field(default_factory=dict)
    head_labels: tuple[Tensor, ...] = ()


def labels_in(values: Any) -> list[Tensor]:
    """The labels of all values in ``values``, however they are nested."""
    leaves = tree_leaves(values, is_leaf=lambda leaf: isinstance(leaf, Value))
    return [
        labels for leaf in leaves if isinstance(leaf, Value) for labels in (*leaf.labels.values(), *leaf.head_labels)
    ]


def with_last(shape: torch.Size, labels: Tensor | None) -> Value:
    """A value with ``labels`` along its last dimension or, if they vary over heads, over several dimensions."""
    if labels is None:
        return Value(shape)
    if labels.numel() == labels.shape[-1]:
        return Value(shape, {len(shape) - 1: labels.flatten()})
    return Value(shape, {}, (labels,))


def blank(node: Node) -> Any:
    """The result of an operator, without labels."""
    return tree_map(lambda fake: Value(fake.shape) if isinstance(fake, Tensor) else fake, node.meta.get("val"))


def argument_value(node: Node, args: tuple, kwargs: dict, argument: Node) -> Value:
    """The value that an operator received for its argument ``argument``."""
    pairs = zip((*node.args, *node.kwargs.values()), (*args, *kwargs.values()), strict=True)
    return next(value for given, value in pairs if given is argument)
