"""What is asked of a node's operator."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.structure.graph.trace import trace
from lightning_fold.structure.operators.nodes import (
    batch_norm_behind,
    batch_norm_eps,
    compact,
    family,
    feeds_softmax,
    functional,
    is_in_place,
    is_view,
    norm_affine,
    norm_eps,
    normalised_dims,
    operator_name,
    restride,
    softmax_over,
)
from tests.structure.reading import Apply

X = torch.randn(2, 3, 4)


def _nodes(model, *inputs: Tensor) -> list[Node]:
    network = model if isinstance(model, nn.Module) else Apply(lambda m, *xs: model(*xs))
    return [node for node in trace(network, inputs or (X,)).graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (torch.relu, "relu", "pointwise"),
        (lambda x: x.clone().relu_(), "relu", "pointwise"),
        (lambda x: x * 2, "mul", "product"),
        (lambda x: x.cumsum(1), "cumsum", "unknown"),
        (lambda x: x.transpose(1, 2), "transpose", "movement"),
        (lambda x: x[:, :2], "slice", "positions"),
        (lambda x: x.double(), None, "cast"),
        (lambda x: F.softmax(x, -1), "softmax", "softmax"),
    ],
)
def test_family_and_name(function, name: str | None, expected: str) -> None:
    node = _nodes(function)[-1]
    assert family(node) == expected and (name is None or operator_name(node) == name)


def test_operator_in_place_runs_as_one_that_changes_nothing() -> None:
    node = _nodes(lambda x: (x * 2).relu_())[-1]
    value = torch.tensor([-1.0, 1.0])
    assert is_in_place(node) and torch.equal(functional(node)(value), value.relu()) and value[0] == -1
    assert not is_in_place(_nodes(torch.relu)[-1])


def test_view_runs_on_any_strides() -> None:
    node = _nodes(lambda x: x.view(2, 12))[-1]
    assert is_view(node) and torch.equal(
        functional(node)(X.transpose(0, 2).contiguous().transpose(0, 2), (2, 12)), X.flatten(1)
    )
    assert not is_view(_nodes(torch.relu)[-1])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.softmax(-1), True),
        (lambda x: (x * 2 + 1).clone().softmax(2), True),
        (lambda x: x.softmax(1), False),
        (lambda x: x.softmax(-1) + x, False),
        (lambda x: x.tanh().softmax(-1), False),
    ],
)
def test_rows_may_move_by_a_constant_before_softmaxes_alone(function, expected: bool) -> None:
    assert feeds_softmax(_nodes(lambda x: function(torch.exp(x)))[0]) is expected


def test_softmax_is_seen_through_what_changes_nothing() -> None:
    assert softmax_over(_nodes(lambda x: F.dropout(x.softmax(-1).clone(), 0.5, False))[-1])
    assert not softmax_over(_nodes(lambda x: x.softmax(1))[-1]) and not softmax_over(
        _nodes(lambda x: x.softmax(-1) * 2)[-1]
    )


def test_parts_of_norms() -> None:
    (node,) = [n for n in _nodes(nn.LayerNorm((3, 4), eps=0.25)) if family(n) == "layer_norm"]
    assert normalised_dims(node) == (1, 2) and norm_eps(node) == 0.25 and None not in norm_affine(node)
    (node,) = [n for n in _nodes(nn.RMSNorm(4)) if family(n) == "layer_norm"]
    assert normalised_dims(node) == (2,) and norm_eps(node) is None and norm_affine(node)[1] is None
    norm = nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3, eps=0.5))
    conv, batch_norm = [n for n in _nodes(norm) if family(n) in ("contraction", "batch_norm")]
    assert batch_norm_eps(batch_norm) == 0.5 and batch_norm_behind(conv) is batch_norm


def test_compact_and_restride_keep_the_values() -> None:
    value = torch.tensor([[1.0, torch.nan]]).repeat(3, 1)
    found = restride(value)
    assert found.stride() == (0, 1) and compact(found).shape == (1, 2)
    torch.testing.assert_close(found, value, equal_nan=True, rtol=0, atol=0)
    assert compact(value) is value
