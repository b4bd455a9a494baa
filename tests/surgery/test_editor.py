"""Editors: values by dotted name, in place and beside an untouched network."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.inputs import call
from lightning_fold.surgery.editor import Editor, NetworkEditor
from lightning_fold.surgery.overlay import Overlay
from lightning_fold.surgery.transaction import Surgery
from tests.zoo import ZOO, build, flat, run

_FACTORS = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
_CHANGED = ("0.0.weight", "0.1.running_mean", "1.bn1.bias", "1.conv1.weight")


def _change(editor: Editor) -> None:
    editor.scale("0.0.weight", 0, _FACTORS)
    editor.add("0.1.running_mean", _FACTORS)
    editor.set("1.bn1.bias", _FACTORS.flip(0))
    editor.scale("1.conv1.weight", 1, 1 / _FACTORS)
    editor.transform("1.conv1.weight", lambda weight: weight.flip(0))
    editor.add("0.1.running_mean", editor.tensor("1.bn1.bias"))  # what was changed before is read


def test_overlay_gives_what_a_transaction_on_a_copy_gives() -> None:
    model = build("residual")
    before, changed = deepcopy(model.state_dict()), deepcopy(model)
    overlay = Overlay(model)
    _change(overlay)
    with Surgery(changed) as surgery:
        _change(surgery)
    assert overlay.changed.keys() == set(_CHANGED)
    for name, value in changed.state_dict().items():
        assert torch.equal(overlay.tensor(name), value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    inputs = ZOO["residual"].inputs()
    with torch.no_grad():
        found = flat(call(model, inputs, overlay.changed))
    assert torch.equal(found, run(changed, inputs)) and not torch.equal(found, run(model, inputs))


@pytest.mark.parametrize("kind", [NetworkEditor, Overlay])
def test_scale_and_add_against_plain_torch(kind: Callable[[nn.Module], Editor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).double()
    weight, mean = model[0].weight.detach().clone(), model[1].running_mean.clone()
    rows, columns, shift = torch.randn(4), torch.randn(3), torch.randn(4)
    editor = kind(model)
    editor.scale("0.weight", 0, rows)
    editor.scale("0.weight", 1, columns)
    editor.add("1.running_mean", shift)
    expected = torch.einsum("oihw,o,i->oihw", weight, rows.double(), columns.double())
    torch.testing.assert_close(editor.tensor("0.weight").detach(), expected, rtol=1e-14, atol=0)
    assert torch.equal(editor.tensor("1.running_mean"), mean + shift.double())
    assert isinstance(model[0].weight, nn.Parameter) and model[0].weight.requires_grad


_VALUES: dict[str, Callable[[Editor], None]] = {
    "scale": lambda editor: editor.scale("weight", 0, torch.tensor([3.0, 5.0])),
    "add": lambda editor: editor.add("weight", torch.ones(2, 3)),
    "set": lambda editor: editor.set("weight", torch.ones(2, 3)),
}


def _trained() -> tuple[nn.Linear, torch.optim.Optimizer, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model.weight.grad = torch.randn_like(model.weight)
    optimizer.step()
    return model, optimizer, {key: value.clone() for key, value in optimizer.state[model.weight].items()}


@pytest.mark.parametrize("change", _VALUES)
def test_values_change_without_optimizer_state(change: str) -> None:
    model, optimizer, before = _trained()
    weight = model.weight.detach().clone()
    with Surgery(model, [optimizer]) as surgery:
        _VALUES[change](surgery)
    assert not torch.equal(model.weight, weight)
    after = optimizer.state[model.weight]
    assert optimizer.param_groups[0]["params"][0] is model.weight and before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_transform_changes_optimizer_state_alike_or_as_told() -> None:
    for moments, factor in ((None, 2.0), (lambda moment: 7 * moment, 7.0)):
        model, optimizer, before = _trained()
        weight = model.weight.detach().clone()
        with Surgery(model, [optimizer]) as surgery:
            surgery.transform("weight", lambda tensor: 2 * tensor, moments)
        after = optimizer.state[model.weight]
        assert torch.equal(model.weight, 2 * weight)
        assert torch.equal(after["exp_avg"], factor * before["exp_avg"])
        assert torch.equal(after["exp_avg_sq"], factor * before["exp_avg_sq"])
        assert torch.equal(after["step"], before["step"])
