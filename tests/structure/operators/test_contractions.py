"""What the arguments of a linear layer or convolution mean, against the modules that were traced."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.structure.graph.trace import Trace, trace
from lightning_fold.structure.operators.contractions import (
    contraction_channel,
    contraction_groups,
    is_padded,
    is_transposed,
    oriented,
)
from lightning_fold.structure.operators.nodes import family, operands
from tests.structure.reading import Apply


def _traced(model: nn.Module, *inputs: Tensor) -> tuple[Trace, Node]:
    graph = trace(model, inputs)
    return graph, next(node for node in graph.graph.nodes if family(node) in ("contraction", "matmul"))


@pytest.mark.parametrize(
    ("layer", "shape", "channel"),
    [
        (nn.Linear(4, 6), (2, 5, 4), 2),
        (nn.Conv1d(4, 6, 2, groups=2), (2, 4, 5), 1),
        (nn.Conv2d(4, 6, 2, groups=2), (2, 4, 5, 5), 1),
        (nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3), 1),
        (nn.ConvTranspose2d(4, 6, 2), (2, 4, 5, 5), 1),
    ],
)
def test_rows_are_the_channels_that_the_layer_writes(layer: nn.Module, shape: tuple[int, ...], channel: int) -> None:
    graph, node = _traced(layer, torch.randn(shape))
    weight = graph.tensors[operands(node, node.args, node.kwargs)[1]]
    groups = getattr(layer, "groups", 1)
    assert oriented(node, weight).shape[:2] == (6, 4 // groups) and contraction_groups(node) == groups
    assert is_transposed(node) == isinstance(layer, nn.ConvTranspose2d)
    assert contraction_channel(node) == channel and node.meta["val"].shape[channel] == 6


def test_matrix_product_is_transposed() -> None:
    _, node = _traced(Apply(lambda m, x: x @ m.b, b=nn.Parameter(torch.randn(4, 6))), torch.randn(2, 4))
    assert is_transposed(node) and contraction_groups(node) == 1 and contraction_channel(node) == 1


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 6, 3), False),
        (nn.Conv2d(4, 6, 3, padding=1), True),
        (nn.Conv2d(4, 6, 3, padding=(0, 1)), True),
        (nn.Conv2d(4, 6, 3, padding="same"), True),
        (nn.Conv2d(4, 6, 1, padding="same"), False),
        (nn.Conv2d(4, 6, 3, padding="valid"), False),
        (nn.ConvTranspose2d(4, 6, 1), True),
    ],
)
def test_zeros_around_the_input_are_seen(layer: nn.Module, expected: bool) -> None:
    assert is_padded(_traced(layer, torch.randn(2, 4, 5, 5))[1]) is expected
