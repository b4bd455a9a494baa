"""Values of the run over labels."""

import torch

from lightning_fold.structure.graph.trace import trace
from lightning_fold.structure.values import Value, argument_value, blank, labels_in, with_last
from tests.structure.reading import Apply

SHAPE = torch.Size((2, 3, 4))


def test_labels_are_found_however_values_are_nested() -> None:
    one, two, heads = torch.arange(3), torch.arange(4), torch.arange(12).reshape(1, 3, 4)
    values = [Value(SHAPE, {1: one}), {"a": (Value(SHAPE, {2: two}, (heads,)), 5, None)}]
    assert [id(labels) for labels in labels_in(values)] == [id(one), id(two), id(heads)]
    assert labels_in([Value(SHAPE), torch.ones(2)]) == []


def test_last_dimension_holds_labels_unless_they_are_over_heads() -> None:
    labels = torch.arange(4).reshape(1, 1, 4)
    assert with_last(SHAPE, None) == Value(SHAPE)
    found = with_last(SHAPE, labels)
    assert found.labels.keys() == {2} and torch.equal(found.labels[2], torch.arange(4)) and not found.head_labels
    heads = torch.arange(12).reshape(1, 3, 4)
    found = with_last(SHAPE, heads)
    assert not found.labels and found.head_labels[0] is heads


def test_blank_results_have_the_shapes_of_the_node() -> None:
    graph = trace(Apply(lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1)), torch.randn(2, 3)).graph
    chunk, *_, cat = [node for node in graph.nodes if node.op == "call_function"]
    assert blank(chunk) in ([Value(torch.Size((2, 1)))] * 3, (Value(torch.Size((2, 1))),) * 3)
    assert blank(cat) == Value(torch.Size((2, 3)))


def test_value_of_an_argument_by_its_node() -> None:
    graph = trace(Apply(lambda m, x, y: torch.addcmul(x, y, y.relu())), (torch.randn(2), torch.randn(2))).graph
    node = next(node for node in graph.nodes if "addcmul" in str(node.target))
    values = tuple(Value(torch.Size((i,))) for i in range(len(node.args)))
    for value, given in zip(values, node.args, strict=True):
        assert argument_value(node, values, {}, given) is value
