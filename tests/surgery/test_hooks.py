"""Hooks of modules that surgery exchanges."""

from typing import Any

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.surgery.hooks import COMPUTED, hooks_of, move_hooks
from lightning_fold.surgery.transaction import Surgery


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hooks_that_compute_a_weight_are_found_and_do_not_move() -> None:
    old, new = nn.utils.weight_norm(nn.Linear(3, 2)), nn.Linear(3, 2)
    old.register_forward_pre_hook(lambda module, args: None)
    ((key, _),) = hooks_of(old, COMPUTED)
    others = [other for other in old._forward_pre_hooks if other != key]
    move_hooks(old, new)
    assert list(new._forward_pre_hooks) == others and not old._forward_pre_hooks


def _hooked(module: nn.Module, seen: list[str]) -> list[Any]:
    """Every kind of hook on what a module is called with, what it gives, and its gradients."""
    return [
        module.register_forward_pre_hook(lambda _, args: seen.append("before")),
        module.register_forward_hook(lambda _, args, kwargs, output: seen.append("after"), with_kwargs=True),
        module.register_forward_hook(lambda _, args, output: seen.append("always"), always_call=True),
        module.register_full_backward_pre_hook(lambda _, gradients: seen.append("gradient")),
        module.register_full_backward_hook(lambda _, read, given: seen.append("gradients")),
    ]


_ALL_HOOKS = ["before", "after", "always", "gradient", "gradients"]


def _called(model: nn.Module, x: torch.Tensor, seen: list[str]) -> list[str]:
    seen.clear()
    model(x.clone().requires_grad_()).square().sum().backward()
    return list(seen)


@pytest.mark.parametrize("replaced", [0, 1], ids=["factors", "norm"])
def test_hooks_move_to_what_takes_the_place_of_their_module(replaced: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)).double()
    x, seen = torch.randn(5, 6, dtype=torch.float64), []
    with torch.no_grad():
        model[0].weight[8:], model[3].weight[:, 8:] = 0, 0
    handles = _hooked(model[replaced], seen)
    assert _called(model, x, seen) == _ALL_HOOKS
    before, structure = model[replaced], lf.describe(model)
    if replaced:
        lf.minimize(model, x)
    else:
        lf.factorize(model, x, keep=0.7)
    assert type(model[replaced]) is not type(before) and _called(model, x, seen) == _ALL_HOOKS
    lf.rebuild(model, structure)
    assert type(model[replaced]) is type(before) and _called(model, x, seen) == _ALL_HOOKS
    for handle in handles:
        handle.remove()
    assert _called(model, x, seen) == []


def test_hooks_see_all_features_of_a_layer_that_reads_some() -> None:
    model, x, shapes = nn.Sequential(nn.Linear(6, 4)).double(), torch.randn(5, 6, dtype=torch.float64), []
    with torch.no_grad():
        model[0].weight[:, 2:] = 0
    model[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    lf.minimize(model, x, select_inputs=True)
    assert isinstance(model[0], nn.Sequential)
    shapes.clear()
    model(x)
    assert shapes == [(5, 6)]


def test_handles_remove_their_hooks_after_a_failure() -> None:
    model, x, seen = nn.Sequential(nn.Linear(6, 4)), torch.randn(5, 6), []
    handles = _hooked(model[0], seen)
    with pytest.raises(ZeroDivisionError), Surgery(model) as surgery:
        surgery.replace_module("0", nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 4)))
        _ = 1 // 0
    assert _called(model, x, seen) == _ALL_HOOKS
    for handle in handles:
        handle.remove()
    assert _called(model, x, seen) == []


def test_layer_whose_hook_reads_its_weight_is_not_factorized() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), torch.randn(5, 16)
    model[0].register_forward_hook(lambda module, args, output: output * module.weight.norm())
    report = lf.factorize(model, x, keep=0.7)
    assert type(model[0]) is nn.Linear and type(model[2]) is nn.Sequential
    assert any(each.tensor == "0" and "reads its weight" in each.reason for each in report.kept)
