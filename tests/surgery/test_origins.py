"""What modules were before they were rewritten."""

from copy import deepcopy

import torch
from torch import nn

from lightning_fold.surgery.origins import (
    as_built,
    created_in,
    keep_in_state_dict,
    remember_created,
    remember_replaced,
    replaced_by,
)


def _with_buffers() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 2, bias=False))
    module.register_buffer("saved", torch.ones(2))
    module.register_buffer("unsaved", torch.arange(3.0), persistent=False)
    return module


def test_replaced_module_is_kept_without_what_a_state_dict_holds() -> None:
    old, new = _with_buffers(), nn.Identity()
    remember_replaced(old, new)
    first = replaced_by(new)
    assert type(first) is nn.Sequential and first is not old
    assert first[0].weight.is_meta and first.saved.is_meta and first[0].weight.shape == (2, 3)
    assert torch.equal(first.unsaved, torch.arange(3.0)) and first.unsaved is not old.unsaved
    assert not old[0].weight.is_meta and not new.state_dict()
    assert type(replaced_by(deepcopy(new))) is nn.Sequential


def test_first_of_several_is_remembered() -> None:
    first, second, third = nn.Linear(2, 2), nn.Identity(), nn.Flatten()
    remember_replaced(first, second)
    remember_replaced(second, third)
    assert type(replaced_by(third)) is nn.Linear


def test_module_that_comes_back_remembers_nothing() -> None:
    first, second, back = nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 2)
    remember_replaced(first, second)
    remember_replaced(second, back)
    assert replaced_by(back) is None


def test_created_names_are_read_back_and_copied() -> None:
    module = nn.Linear(2, 2)
    assert created_in(module) == frozenset()
    remember_created(module, frozenset({"bias"}))
    assert created_in(module) == created_in(deepcopy(module)) == {"bias"}


def test_changed_buffer_is_saved_and_what_was_built_is_remembered() -> None:
    module, other = _with_buffers(), _with_buffers()
    built = module.unsaved
    assert as_built(module, "unsaved") is None and "unsaved" not in module.state_dict()
    keep_in_state_dict(module, "unsaved")
    module.unsaved = torch.zeros(1)
    assert as_built(module, "unsaved") is built and torch.equal(module.state_dict()["unsaved"], torch.zeros(1))
    assert "unsaved" not in other.state_dict()
