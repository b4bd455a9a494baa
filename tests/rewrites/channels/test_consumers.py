"""Consumers: the layers that least squares can solve for."""

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.rewrites.channels.consumers import find_consumers
from lightning_fold.structure.groups import read_structure
from tests.zoo import ZOO, build


def _paths(model: nn.Module, inputs) -> list[str]:
    return [consumer.path for consumer in find_consumers(read_structure(model.eval(), inputs))]


@pytest.mark.parametrize("name", ["mlp", "residual", "two_inputs", "two_outputs", "flatten"])
def test_plain_networks_have_every_linear_layer_and_convolution(name: str) -> None:
    model = build(name)
    layers = {path for path, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    found = _paths(model, ZOO[name].inputs())
    assert set(found) == layers and len(found) == len(layers)


def test_order_is_that_of_the_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu())

    assert _paths(Backwards(), torch.randn(2, 3)) == ["first", "last"]


@pytest.mark.parametrize("name", ["separable", "grouped", "conv_reflect", "shared_linear", "shared_conv", "transposed"])
def test_layers_of_another_kind_or_called_twice_are_none(name: str) -> None:
    model = build(name)
    twice = {"shared", "left", "right"}
    plain = {
        path
        for path, module in model.named_modules()
        if (type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1))
        and getattr(module, "padding_mode", "zeros") == "zeros"
        and path not in twice
    }
    assert set(_paths(model, ZOO[name].inputs())) == plain


def test_branch_that_only_training_runs_is_none() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux, self.head = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor):
            x = self.body(x)
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    assert _paths(Auxiliary(), torch.randn(2, 3)) == ["body", "head"]


def test_each_channel_is_read_once_unless_it_was_flattened() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(20, 2))
    structure = read_structure(model.eval(), torch.randn(2, 3, 2, 2))
    consumers = {consumer.path: consumer for consumer in find_consumers(structure)}
    assert [consumers[path].reads_each_once(structure) for path in ("1", "3")] == [True, False]
    assert consumers["1"].weight == "1.weight"


def test_a_network_that_is_one_layer_has_a_weight_without_a_path() -> None:
    (consumer,) = find_consumers(read_structure(nn.Linear(3, 2), torch.randn(2, 3)))
    assert (consumer.path, consumer.weight) == ("", "weight")
