"""Branches with nothing left: modules that give a constant become it, and those before them go."""

import json
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.layers import Constant
from tests.zoo import error_of, randomise, run


class Blocks(nn.Module):
    """A residual block, one that halves the image, and a branch that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Sequential(*self._layers(6, 6, 1))
        self.two, self.shortcut = nn.Sequential(*self._layers(6, 8, 2)), nn.Conv2d(6, 8, 1, 2)
        self.side, self.head = nn.Conv2d(8, 5, 1), nn.Linear(13, 4)

    @staticmethod
    def _layers(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        first = nn.Conv2d(inputs, 7, 3, stride, padding=1, bias=False)
        second = nn.Conv2d(7, outputs, 3, padding=1, bias=False)
        return [first, nn.BatchNorm2d(7), nn.ReLU(), second, nn.BatchNorm2d(outputs)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        x = F.relu(self.shortcut(x) + self.two(x))
        return self.head(torch.cat([x, F.relu(self.side(x))], 1).mean((2, 3)))


def _blocks() -> Any:
    torch.manual_seed(0)
    model = Blocks().double()
    randomise(model)
    return model.eval()


def _same(model: nn.Module, dense: nn.Module, *sizes: int) -> bool:
    inputs = [torch.randn(3, 3, size, size, dtype=torch.float64) for size in sizes]
    return all(error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12 for x in inputs)


@pytest.mark.parametrize("how", ["filters", "norm"])
def test_residual_branch_becomes_a_constant(how: str) -> None:
    model, x = _blocks(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for branch in (model.one, model.two):
            (branch[3] if how == "filters" else branch[4]).weight.zero_()
        model.side.weight.zero_()
    dense, optimizer = deepcopy(model), torch.optim.Adam(model.parameters())
    lf.minimize(model, x, optimizers=[optimizer])
    assert isinstance(model.one, Constant) and isinstance(model.two[4], Constant)
    assert model.two[0].weight.shape == (1, 6, 3, 3)  # it makes the image smaller
    assert [type(module) for module in model.two[1:4]] == [nn.Identity, nn.ReLU, nn.Identity]
    assert model.side.out_channels == 1 and model.head.in_features == 9  # concatenated, it moves into the bias behind
    assert _same(model, dense, 8, 12)
    assert lf.minimize(model, x).changes == ()
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}
    before = model.one.value.detach().clone()
    model.train()(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.one.value, before)
    fresh = _blocks()
    lf.rebuild(fresh, json.loads(json.dumps(lf.describe(model))))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh, (x,)), run(model.eval(), (x,))) and lf.describe(fresh) == lf.describe(model)
    lf.rebuild(model, lf.describe(dense))  # and back, as a checkpoint of before asks for
    model.load_state_dict(dense.state_dict())
    assert torch.equal(run(model, (x,)), run(dense, (x,)))


def test_channels_behind_a_gamma_of_zero_read_nothing() -> None:
    """Three of the six rows before the last BatchNorm alone read the hidden channels 4, 5 and 6."""
    model, x = _blocks(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model.one[4].weight[:3] = 0
        model.one[3].weight[3:, 4:] = 0
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert model.one[0].out_channels == 4 == model.one[3].in_channels and model.one[3].out_channels == 6
    assert _same(model, dense, 8, 11)


def test_branches_of_a_transformer() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("test_vit", img_size=32, num_classes=5).double().eval()
    randomise(model)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.zero_()
        model.blocks[1].mlp.fc2.weight.zero_()
    dense = deepcopy(model)
    lf.minimize(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert isinstance(model.blocks[0].attn, Constant) and isinstance(model.blocks[0].norm1, nn.Identity)
    assert isinstance(model.blocks[1].mlp, Constant) and isinstance(model.blocks[1].norm2, nn.Identity)
    assert not isinstance(model.blocks[0].mlp, Constant) and _same(model, dense, 32)


def test_blocks_of_torchvision() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5, zero_init_residual=True).double().eval()
    dense, x = deepcopy(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    lf.minimize(model, x)
    changed = [name for name, module in model.named_modules() if isinstance(module, Constant)]
    assert changed == [f"layer{i}.{j}.bn2" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert _same(model, dense, 64, 96)


class Asking(nn.Module):
    """Returns two values, or asks the layer for its weight: a constant cannot stand in its place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.one, self.two, self.head = how, nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.two.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        if self.how == "asks":
            return self.head(x + self.two(x) * len(self.two.weight))
        return self.head(x + F.linear(x, self.two.weight, self.two.bias))


@pytest.mark.parametrize("how", ["asks", "bypasses"])
def test_code_that_asks_more_of_a_module_keeps_it(how: str) -> None:
    torch.manual_seed(0)
    model, x = Asking(how).double(), torch.randn(4, 6, dtype=torch.float64)
    dense = deepcopy(model)
    report = lf.minimize(model, x)
    assert isinstance(model.two, nn.Linear) and error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert ("needs more" in "".join(kept.reason for kept in report.kept)) == (how == "asks")


def test_image_of_one_pixel_says_nothing_about_its_size() -> None:
    """At 1 x 1 a stride of 2 cannot be told from one of 1, so the layers stay."""
    model, x = _blocks(), torch.randn(2, 3, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        model.two[3].weight.zero_()
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert not any(isinstance(module, Constant) for module in model.modules()) and _same(model, dense, 1, 8)
