"""constants: what it knows of a network is what every input gives."""

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.structure.constant_values import UNKNOWN
from lightning_fold.structure.constants import constants
from lightning_fold.structure.graph.trace import interpret, trace
from lightning_fold.structure.operators.nodes import functional
from tests.structure.reading import Apply, known
from tests.zoo import ZOO, build


@pytest.mark.parametrize("name", ["mlp", "residual", "separable", "grouped", "excited", "group_norm", "stream"])
def test_what_is_known_inside_is_what_the_network_computes(name: str) -> None:
    model, inputs = build(name, "both"), ZOO[name].inputs(2, seed=7)
    graph = trace(model, ZOO[name].inputs(2))
    known_values = constants(graph)
    given = iter(inputs)
    values = interpret(
        graph,
        lambda node: graph.tensors[node] if node in graph.tensors else next(given),
        lambda node, args, kwargs: functional(node)(*args, **kwargs),
    )
    count = 0
    for node, found in known_values.items():
        if isinstance(found, Tensor) and found.is_floating_point() and node.op == "call_function":
            count += int((~found.isnan()).sum())
            expected = torch.where(found.isnan(), torch.nan, values[node])
            torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert count > 0


def test_what_parameters_alone_make_is_computed_by_any_operator() -> None:
    """Also where the operator has no rule."""
    model = Apply(lambda m, x: x * 0 + torch.cumsum(m.a, 0), a=nn.Parameter(torch.tensor([1.0, 2, 3]).double()))
    assert torch.equal(known(model, torch.randn(2, 3).double()), torch.tensor([1.0, 3, 6]).double().expand(2, 3))


def test_input_and_operators_without_a_rule_are_unknown() -> None:
    model = Apply(lambda m, x: torch.cumsum(x * 0, 1))
    assert known(model, torch.randn(2, 3).double()).isnan().all()


def test_integers_that_depend_are_unknown_and_those_of_the_network_are_not() -> None:
    model = Apply(lambda m, x: x[:, m.index] + x.argmax(1, keepdim=True))
    model.register_buffer("index", torch.tensor([2, 0]))
    graph = trace(model, torch.randn(2, 3))
    found = constants(graph)
    assert next(value for node, value in found.items() if "argmax" in str(node.target)) is UNKNOWN
    index = next(node for node, name in graph.names.items() if name == "index")
    assert torch.equal(found[index], torch.tensor([2, 0]))
