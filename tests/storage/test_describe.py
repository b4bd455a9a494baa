"""describe: a structure as plain values."""

import json

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.errors import ArgumentTypeError
from lightning_fold.storage.describe import plain, type_name
from tests.zoo import build


def test_description_is_plain() -> None:
    structure = lf.describe(build("residual"))
    entry = structure["1.conv1"]
    assert entry["type"] == "torch.nn.Conv2d" and entry["shapes"] == {"weight": [8, 8, 3, 3]}
    assert entry["attributes"]["out_channels"] == 8 and entry["attributes"]["kernel_size"] == [3, 3]
    assert json.loads(json.dumps(structure)) == structure


def test_attributes_that_are_not_plain_and_private_ones_are_left_out() -> None:
    module = nn.BatchNorm1d(3, affine=False)
    module.pair, module.function, module.mixed, module._own = (1, None), len, [1, len], 2
    entry = lf.describe(module)[""]
    expected = {"num_features": 3, "eps": 1e-5, "momentum": 0.1, "affine": False, "track_running_stats": True}
    assert entry["attributes"] == expected | {"pair": [1, None]}
    assert entry["shapes"] == {"running_mean": [3], "running_var": [3], "num_batches_tracked": []}


def test_shared_module_is_described_once() -> None:
    layer = nn.Linear(2, 2)
    assert list(lf.describe(nn.Sequential(layer, layer))) == ["", "0"]


def test_type_name_is_the_public_path() -> None:
    assert type_name(nn.Conv2d(1, 1, 1)) == "torch.nn.Conv2d"


def test_plain_values_keep_their_values_and_lose_their_tuples() -> None:
    assert plain((1, [2.5, ("a", True)], torch.Size([3]), None)) == [1, [2.5, ["a", True]], [3], None]
    with pytest.raises(ArgumentTypeError):
        plain({"a": 1})
