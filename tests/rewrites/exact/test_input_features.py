"""Unread input features leave behind a selection."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.layers import SelectFeatures
from lightning_fold.rewrites.exact.input_features import select_read_features
from lightning_fold.structure.groups import read_structure
from lightning_fold.surgery.transaction import Surgery
from tests.zoo import error_of, run


def _select(model: nn.Module, x: Tensor) -> None:
    structure = read_structure(model, x)
    with Surgery(model) as surgery:
        select_read_features(surgery, structure)


def _network(unread: list[int], first: nn.Module | None = None) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(first or nn.Identity(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[1].weight[:, unread] = 0
    return model, torch.randn(5, 6, dtype=torch.float64)


def test_features_that_are_read_are_selected_and_outputs_stay() -> None:
    model, x = _network([1, 4])
    dense = deepcopy(model)
    _select(model, x)
    selection, linear = model[1]
    assert isinstance(selection, SelectFeatures) and selection.index.tolist() == [0, 2, 3, 5]
    assert torch.equal(linear.weight, dense[1].weight[:, [0, 2, 3, 5]]) and linear.in_features == 4
    assert error_of(run(model, (x,)), run(dense, (x,))) < 1e-12


def test_a_second_selection_of_the_same_features_changes_nothing() -> None:
    model, x = _network([1, 4])
    _select(model, x)
    once = deepcopy(model.state_dict())
    _select(model, x)
    assert [type(module) for module in model[1]] == [SelectFeatures, nn.Linear]
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())


class _Moved(nn.Module):
    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.move(x)


@pytest.mark.parametrize(
    ("move", "selected"),
    [
        (lambda x: x.reshape(-1, 6), True),
        (lambda x: x[:, None].squeeze(1), True),
        (torch.relu, False),
        (lambda x: 2 * x, False),
    ],
)
def test_only_an_input_that_is_not_computed_with_is_selected_from(move: Callable, selected: bool) -> None:
    model, x = _network([1, 4], _Moved(move))
    dense = deepcopy(model)
    _select(model, x)
    assert isinstance(model[1], nn.Sequential) == selected
    assert error_of(run(model, (x,)), run(dense, (x,))) < 1e-12


@pytest.mark.parametrize("unread", [[], list(range(6))])
def test_layers_that_read_all_features_or_none_stay(unread: list[int]) -> None:
    model, x = _network(unread)
    _select(model, x)
    assert model[1].weight.shape == (4, 6)


def test_the_network_itself_is_not_replaced() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight[:, 1])
    _select(model, torch.randn(2, 3))
    assert model.weight.shape == (2, 3)


def test_a_selection_from_an_earlier_call_becomes_shorter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = torch.randn(5, 6).double()
    for columns, left in (([1, 4], [0, 2, 3, 5]), ([0, 3], [2, 3])):
        layer = model[1] if isinstance(model[1], nn.Linear) else model[1][1]
        with torch.no_grad():
            layer.weight[:, columns] = 0
        expected = model(inputs)
        lf.minimize(model, inputs, select_inputs=True)
        assert model[1][0].index.tolist() == left
        torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-12)
