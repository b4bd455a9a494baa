"""Which dimensions are summed where channels are merged: those that contractions read, and no others."""

import torch
from torch import nn

from lightning_fold.structure.columns import Columns
from lightning_fold.structure.groups import read_structure
from tests.structure.reading import Apply

X = torch.randn(2, 3, dtype=torch.float64)


def _columns(model: nn.Module, *inputs: torch.Tensor) -> Columns:
    return read_structure(model.double(), inputs or (X,)).columns


def test_columns_of_layers_are_summed() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 2, 1)).eval()
    found = _columns(model, torch.randn(2, 3, 5, dtype=torch.float64))
    assert found.read == {("0.weight", 1), ("2.weight", 0)} and found.unsummed == ()


def test_grouped_convolution_has_no_columns_of_the_network() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1, groups=2))
    assert _columns(model, torch.randn(2, 3, 5, dtype=torch.float64)).read == {("0.weight", 1)}


def test_weight_is_followed_through_movement_and_numbers() -> None:
    parts = {"a": nn.Linear(3, 2), "b": nn.Parameter(torch.randn(2, 4))}
    found = _columns(Apply(lambda m, x: nn.functional.linear(m.a(x), (m.b * 2).t()), **parts))
    assert found.read == {("a.weight", 1), ("b", 0)} and found.unsummed == ()


def test_weight_used_in_another_way_is_named() -> None:
    model = Apply(lambda m, x: m.b(m.a(x)) + m.b.weight.sum(), a=nn.Linear(3, 2), b=nn.Linear(2, 4))
    found = _columns(model)
    assert ("b.weight", 1) in found.read and any("b.weight" in why for _, why in found.unsummed)


def test_weight_that_the_network_computes_is_not_summed() -> None:
    model = Apply(
        lambda m, x: nn.functional.linear(m.a(x), m.b.exp()), a=nn.Linear(3, 2), b=nn.Parameter(torch.randn(4, 2))
    )
    structure = read_structure(model.double(), (X,))
    rows = structure.groups(structure.labels.axes["a.weight", 0])
    assert ("b", 1) not in structure.columns.read
    assert any(torch.equal(structure.group_of[labels], rows) for labels, _ in structure.columns.unsummed)
