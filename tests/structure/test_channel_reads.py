"""What layers and norms read of channels."""

import pytest
import torch
from torch import nn

from lightning_fold.structure.channel_reads import (
    constant_columns,
    input_constants,
    norm_constants,
    used_columns,
    varying_columns,
)
from lightning_fold.structure.groups import read_structure

X = torch.randn(2, 3, dtype=torch.float64)
IMAGE = torch.randn(2, 4, 3, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 2, bias=False),
        nn.Conv2d(4, 6, 2, groups=2, bias=False),
        nn.Conv2d(4, 8, 2, groups=4, bias=False),
        nn.ConvTranspose2d(4, 6, 2, bias=False),
    ],
)
def test_used_columns_are_those_through_which_a_change_passes(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        layer.weight *= torch.rand(*layer.weight.shape[:2], 1, 1) < 0.5
    structure = read_structure(layer, IMAGE)
    found = used_columns(structure, structure.labels.contractions[0])
    rows = []
    with torch.no_grad():
        for column in range(4):
            changed = IMAGE.clone()
            changed[:, column] += 1
            rows.append((layer(changed) - layer(IMAGE)).abs().amax((0, 2, 3)) > 1e-9)
    assert torch.equal(found, torch.stack(rows, 1))


def _model() -> nn.Module:
    """Channels of which one depends, one is zero and one is 5, read by two rows, of which the last reads none."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight[1:] = 0
        model[0].bias.copy_(torch.tensor([1.0, 0.0, 5.0]))
        model[1].weight.copy_(torch.tensor([[1.0, 1, 1], [0, 0, 0]]))
    return model


def test_columns_that_vary_and_constant_ones_are_told_apart() -> None:
    structure = read_structure(_model(), X)
    second = structure.labels.contractions[1]
    given, groups = input_constants(structure, second), structure.groups(structure.labels.axes["0.weight", 0])
    assert given[0].isnan() and given[1:].tolist() == [0.0, 5.0]
    everything = torch.ones(structure.count, dtype=torch.bool)
    assert varying_columns(structure, second, everything)[groups].tolist() == [True, False, False]
    assert constant_columns(structure, second, everything)[groups].tolist() == [False, False, True]
    assert int(varying_columns(structure, second, everything).sum()) == 1
    first_row = structure.groups(structure.labels.axes["1.weight", 0])[:1]
    without = everything.clone()
    without[first_row] = False
    assert not varying_columns(structure, second, without).any()


def test_constants_that_a_norm_reads() -> None:
    model = nn.Sequential(_model()[0], nn.LayerNorm(3, dtype=torch.float64), nn.Linear(3, 2).double())
    structure = read_structure(model, X)
    (norm,) = structure.labels.norms
    given = norm_constants(structure, norm)
    assert given[0].isnan() and given[1:].tolist() == [0.0, 5.0]
