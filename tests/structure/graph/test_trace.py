"""trace: one graph that computes what the network computes, and the names of its tensors."""

import pytest
import torch
from torch import nn

from lightning_fold.errors import TraceError
from lightning_fold.structure.graph.trace import (
    evaluation_mode,
    interpret,
    layer_of,
    layers_of,
    tensor_names,
    trace,
    training_paths,
    unwrapped,
    unwrapped_once,
)
from lightning_fold.structure.operators.nodes import functional
from tests.zoo import ZOO, build, run


@pytest.mark.parametrize("name", ["residual", "shared_linear", "two_inputs", "two_outputs", "in_place"])
def test_graph_computes_what_the_network_computes(name: str) -> None:
    model, inputs = build(name), ZOO[name].inputs(2)
    graph, given = trace(model, inputs), iter(inputs)
    with torch.no_grad():
        values = interpret(
            graph,
            lambda node: graph.tensors[node] if node in graph.tensors else next(given),
            lambda node, args, kwargs: functional(node)(*args, **kwargs),
        )
    found = [values[node] for node in graph.outputs]
    torch.testing.assert_close(
        torch.cat([part.flatten(1) for part in found], 1), run(model, inputs), rtol=1e-12, atol=1e-12
    )


def test_tensors_are_the_networks_own_and_tied_ones_have_one_name() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert sorted(tensor_names(model).values()) == ["0.bias", "0.weight", "1.bias"]
    graph = trace(model, torch.randn(2, 3))
    assert set(graph.names.values()) == {"0.bias", "0.weight", "1.bias"}
    for node, name in graph.names.items():
        assert graph.tensors[node].data_ptr() == model.get_parameter(name).data_ptr()


def test_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, torch.randn(4, 3))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU()).train()
    for mode, inside in ((evaluation_mode, [False] * 4), (training_paths, [True, True, False, False])):
        with pytest.raises(ZeroDivisionError), mode(model):
            assert [module.training for module in model.modules()] == inside
            _ = 1 // 0
        assert all(module.training for module in model.modules())


def test_head_that_only_training_runs_is_in_the_graph_but_not_evaluated() -> None:
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x)
            return (self.head(x), self.other(x)) if self.training else self.head(x)

    graph = trace(Auxiliary(), torch.randn(2, 3))
    layers = {layers_of(node)[-1]: node in graph.evaluated for node in graph.graph.nodes if node.op == "call_function"}
    assert layers == {"body": True, "head": True, "other": False}


def test_layers_of_a_node_are_all_that_it_is_part_of() -> None:
    (node,) = [
        n
        for n in trace(nn.Sequential(nn.Sequential(nn.ReLU())), torch.randn(2, 3)).graph.nodes
        if n.op == "call_function"
    ]
    assert list(dict.fromkeys(layers_of(node))) == ["", "0", "0.0"] and layer_of(node) == "0.0"


def test_wrappers_are_taken_off() -> None:
    model = nn.Linear(2, 2)
    wrapped = torch.compile(nn.DataParallel(model))
    assert unwrapped(wrapped) is model and unwrapped_once(wrapped) is not model and unwrapped_once(model) is model


def test_network_that_cannot_be_traced_is_refused_with_its_name_and_the_shapes() -> None:
    with pytest.raises(TraceError, match=r"Linear.*\(2, 4\)"):
        trace(nn.Linear(3, 2), torch.randn(2, 4))
