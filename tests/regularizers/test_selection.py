"""Which weights patterns select, and what a layer computes with."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from lightning_fold.regularizers.selection import is_matrix, labelled_modules, matches, weight_of


def test_labels_are_the_name_without_compile_and_the_type() -> None:
    network = nn.Sequential(nn.Linear(2, 3), torch.compile(nn.Linear(3, 4)))
    found = {name: labels for name, _, labels in labelled_modules(network)}
    assert found["0"] == ["0", "Linear"]
    assert "Linear" in found["1"] and not any("_orig_mod" in name for name in found)


@pytest.mark.parametrize(
    ("patterns", "expected"), [(["layer*"], True), (["Linear"], True), (["Conv*", "head"], False), ([], False)]
)
def test_one_pattern_and_one_label_are_enough(patterns: list[str], expected: bool) -> None:
    assert matches(patterns, ["layer1.0", "Linear"]) is expected


def test_a_masked_weight_is_the_product_that_the_layer_uses() -> None:
    layer, inputs = nn.Linear(4, 3, bias=False).double(), torch.randn(2, 4).double()
    prune.random_unstructured(layer, "weight", 0.5)
    weight = weight_of(layer, "layer")
    assert weight is not None and weight.name == "layer.weight_orig" and weight.is_real()
    torch.testing.assert_close(inputs @ weight.masked().T, layer(inputs), rtol=0, atol=0)


def test_a_weight_that_a_layer_computes_is_not_selected() -> None:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    assert weight_of(layer, "layer") is None


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(4, 4), True),
        (nn.Conv2d(4, 4, 3), True),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.ConvTranspose2d(4, 4, 3), False),
        (nn.BatchNorm2d(4), False),
    ],
)
def test_layers_that_multiply_with_one_matrix(layer: nn.Module, expected: bool) -> None:
    assert is_matrix(layer) is expected
