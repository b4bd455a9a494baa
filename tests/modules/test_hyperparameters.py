"""Constructor arguments as plain values."""

from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.optim import SGD

from lightning_fold.modules.hyperparameters import is_plain, plain_arguments
from lightning_fold.regularizers import Smoothness


@pytest.mark.parametrize("value", [None, True, 1, 2.5, "a", [1, ["b", None]], {"a": {"b": [1]}}, []])
def test_plain_values_are_kept(value) -> None:
    assert is_plain(value) and plain_arguments(nn.Linear, {"x": value})["x"] == value


@pytest.mark.parametrize("value", [torch.ones(1), nn.ReLU(), {1: 2}, [object()], {"a": {2}}, len])
def test_what_is_not_plain_is_left_out(value) -> None:
    found = plain_arguments(nn.Linear, {"x": value, "y": 1})
    assert not is_plain(value) and "x" not in found and found["y"] == 1


def test_class_and_partial_become_a_path_with_arguments() -> None:
    found = plain_arguments(nn.Linear, {"a": SGD, "b": partial(SGD, lr=0.5), "c": partial(SGD, lr=torch.ones(1))})
    path = {"class_path": "torch.optim.SGD"}
    assert found["a"] == path | {"init_args": {}} and found["b"] == path | {"init_args": {"lr": 0.5}}
    assert "c" not in found


def test_penalty_is_built_again_from_its_plain_form() -> None:
    (found,) = plain_arguments(nn.Linear, {"r": [Smoothness({"nuclear_norm": 0.25})]})["r"]
    parser = ArgumentParser()
    parser.add_subclass_arguments(Smoothness, "r")
    again = parser.instantiate_classes(parser.parse_object({"r": found})).r
    assert isinstance(again, Smoothness) and again.arguments() == Smoothness({"nuclear_norm": 0.25}).arguments()


def test_keys_for_lightning_name_the_class() -> None:
    found = plain_arguments(nn.Linear, {})
    assert found == {"_class_path": "torch.nn.Linear", "_instantiator": "lightning.pytorch.cli.instantiate_module"}
