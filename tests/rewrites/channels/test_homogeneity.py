"""Which channels a positive factor passes through: against a factor that is multiplied in."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fold.rewrites.channels.homogeneity import homogeneous
from lightning_fold.structure.groups import group_channels, read_structure


class _Between(nn.Module):
    """A function of hidden channels, images of 2 x 2."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


FUNCTIONS = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "neg": torch.neg,
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "zero_pad": lambda x: F.pad(x, (1, 1)),
    "amax": lambda x: x.amax((2, 3), keepdim=True),
    "roll_of_places": lambda x: x.roll(1, 2),
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "relu6": F.relu6,
    "plus_one": lambda x: x + 1,
    "one_pad": lambda x: F.pad(x, (1, 1), value=1.0),
    "square": torch.square,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_factor_passes_where_scaling_rows_and_columns_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    model, x = _Between(FUNCTIONS[name]).double(), 3 * torch.randn(4, 3, 2, 2, dtype=torch.float64)
    structure = read_structure(model, x)
    (group,) = (g for g in group_channels(structure) if g.pinned is None)
    scaled, factors = deepcopy(model), torch.tensor([0.5, 2.0, 3.0, 1.5], dtype=torch.float64)
    with torch.no_grad():
        scaled.first.weight *= factors[:, None, None, None]
        scaled.first.bias *= factors
        scaled.last.weight /= factors[:, None, None]
    passes = torch.allclose(scaled(x), model(x), rtol=1e-10, atol=1e-10)
    assert homogeneous(structure)[group.ids].tolist() == [passes] * 4


def test_a_shortcut_passes_it_and_a_product_does_not() -> None:
    class Two(nn.Module):
        def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self.left, self.right, self.last, self.join = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2), join

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.join(self.left(x).relu(), self.right(x)))

    for join, expected in ((torch.add, True), (torch.sub, True), (torch.mul, False)):
        structure = read_structure(Two(join), torch.randn(2, 3))
        (group,) = (g for g in group_channels(structure) if g.pinned is None)
        assert homogeneous(structure)[group.ids].tolist() == [expected] * 4
