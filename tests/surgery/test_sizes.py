"""Attributes that repeat the sizes of tensors, against modules built with those sizes."""

import pytest
import torch
from torch import nn

from lightning_fold.surgery.sizes import refresh_sizes, set_groups

PAIRS = [
    (nn.Linear(3, 4), nn.Linear(2, 5)),
    (nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(2, 4, 3, groups=2)),
    (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.ConvTranspose1d(2, 8, 3, groups=2)),
    (nn.BatchNorm2d(4), nn.BatchNorm2d(2)),
    (nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(2, affine=False)),
    (nn.InstanceNorm1d(4, affine=True), nn.InstanceNorm1d(2, affine=True)),
    (nn.GroupNorm(2, 4), nn.GroupNorm(2, 6)),
    (nn.LayerNorm(4), nn.LayerNorm(2)),
    (nn.RMSNorm(4), nn.RMSNorm(2)),
    (nn.Embedding(4, 3), nn.Embedding(2, 5)),
    (nn.Bilinear(2, 3, 4), nn.Bilinear(4, 5, 6)),
    (nn.PReLU(4), nn.PReLU(2)),
]


@pytest.mark.parametrize(("module", "like"), PAIRS, ids=lambda module: type(module).__name__)
def test_sizes_are_those_of_a_module_built_with_the_tensors(module: nn.Module, like: nn.Module) -> None:
    own = ("_parameters", "_buffers")
    vars(module).update({table: dict(vars(like)[table]) for table in own})
    refresh_sizes(module)

    def plain(each: nn.Module) -> dict:
        return {key: value for key, value in vars(each).items() if key not in own}

    assert plain(module) == plain(like)


@pytest.mark.parametrize("module", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4, affine=False), nn.ReLU()])
def test_sizes_stay_where_there_is_no_tensor(module: nn.Module) -> None:
    before = repr(module)
    refresh_sizes(module)
    assert repr(module) == before


def test_groups_of_a_convolution_and_of_what_owns_such_a_weight() -> None:
    conv = nn.Conv2d(8, 8, 1, groups=4)
    conv.weight = nn.Parameter(torch.zeros(4, 2, 1, 1))
    set_groups(conv, 4, 2)
    assert (conv.groups, conv.in_channels, conv.out_channels) == (2, 4, 4)
    own = nn.Module()
    own.parts, own.other, own.flag = 4, 3, True
    set_groups(own, 4, 2)
    assert (own.parts, own.other, own.flag) == (2, 3, True)
