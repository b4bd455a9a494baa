"""Channels that become positions and positions that become channels: shuffles, unfold and fold."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from lightning_fold.structure.constant_values import along, channel_constants, tidy, unknown
from lightning_fold.structure.labels import LabelRecorder
from lightning_fold.structure.operators.nodes import argument, functional, operator_name
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value


def _label_shuffle(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    """Tie the channels that form one channel of a pixel shuffle, or share a row in a channel shuffle."""
    value, factor = args[:2]
    dim = len(value.shape) - 3 if operator_name(node) == "pixel_shuffle" else 1
    labels = _only(run, node, value, dim)
    if labels is None:
        return Value(node.meta["val"].shape)
    if operator_name(node) == "pixel_shuffle":
        return Value(node.meta["val"].shape, {dim: _tied_columns(run, labels.reshape(-1, factor**2))})
    line = _tied_columns(run, labels.reshape(factor, -1).T)
    return Value(value.shape, {dim: line.repeat_interleave(factor)})


def _label_patches(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    """Give a window (``unfold``) the labels of its channel; tie the windows that form one channel (``fold``)."""
    labels = _only(run, node, args[0], 1)
    if labels is None:
        return Value(node.meta["val"].shape)
    window = _window(node)
    if operator_name(node) == "im2col":
        return Value(node.meta["val"].shape, {1: labels.repeat_interleave(window)})
    return Value(node.meta["val"].shape, {1: _tied_columns(run, labels.reshape(-1, window))})


def _known_patches(node: Node, args: tuple, kwargs: dict) -> Any:
    given = channel_constants(args[0], 1)
    if given is None:
        return unknown(node)
    if operator_name(node) == "col2im":  # sums over overlapping windows
        zero = (given.reshape(-1, _window(node)) == 0).all(1)
        return along(torch.where(zero, given.new_zeros(()), torch.nan), 1, node.meta["val"].shape)
    padding: Any = node.args[3]
    inside = torch.where(given == 0, given, torch.nan) if any(padding) else given
    return along(inside.repeat_interleave(_window(node)), 1, node.meta["val"].shape)


def _known_shuffle(node: Node, args: tuple, kwargs: dict) -> Any:
    return tree_map(tidy, functional(node)(*args, **kwargs))


def _window(node: Node) -> int:
    size: Any = argument(node, 1 if operator_name(node) == "im2col" else 2, "kernel_size", None)
    return size[0] * size[1]


def _only(run: LabelRecorder, node: Node, value: Value, dim: int) -> Tensor | None:
    """The labels along ``dim``; those along other dimensions are pinned."""
    run.pin([labels for d, labels in value.labels.items() if d != dim], node, "is cut into windows")
    return value.labels.get(dim)


def _tied_columns(run: LabelRecorder, labels: Tensor) -> Tensor:
    for other in labels.T[1:]:
        run.tie(labels[:, 0], other)
    return labels[:, 0]


RULES = {
    "shuffle": Rule(_label_shuffle, _known_shuffle),
    "patches": Rule(_label_patches, _known_patches),
}
