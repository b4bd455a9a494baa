"""The nodes of linear layers and convolutions, and the meaning of their arguments."""

from typing import Any

from torch import Tensor
from torch.fx import Node

from lightning_fold.structure.operators.nodes import argument, family, operator_name


def is_transposed(node: Node) -> bool:
    """Whether a contraction's weight is (columns, rows, ...) and not (rows, columns, ...)."""
    return family(node) == "matmul" or operator_name(node).startswith("conv_transpose")


def oriented(node: Node, weight: Tensor) -> Tensor:
    """The weight of a contraction as (rows, columns, ...)."""
    return weight.transpose(0, 1) if is_transposed(node) else weight


def contraction_channel(node: Node) -> int:
    """The dimension of a linear or convolution's input and output that holds the channels."""
    rank = node.meta["val"].dim()
    return rank - 1 - (int(operator_name(node)[-2]) if "conv" in operator_name(node) else 0)


def contraction_groups(node: Node) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    return int(argument(node, 6, "groups", 1)) if "conv" in operator_name(node) else 1


def is_padded(node: Node) -> bool:
    """Whether the input is padded with zeros, so that a constant channel is not constant near the border."""
    if "conv" not in operator_name(node):
        return False
    if operator_name(node).startswith("conv_transpose"):
        return True  # fewer weights contribute at borders and in gaps between strides
    padding = argument(node, 4, "padding", 0)
    if isinstance(padding, str):
        weight: Any = node.args[1]
        return padding != "valid" and weight.meta["val"].shape[2:].numel() > 1
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
