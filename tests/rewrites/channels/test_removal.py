"""Removal: what is left is rectangular, and is the network built from the channels that stay."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_fold.rewrites.channels.removal import Removal, complete, remove
from lightning_fold.structure.groups import group_channels, read_structure
from lightning_fold.surgery.editor import NetworkEditor
from tests.zoo import ZOO, build, error_of, run

NETWORKS = ["mlp", "shuffle", "group_norm", "attention_fused", "multiplier"]


def _at_random(name: str, seed: int):
    model, inputs = build(name), ZOO[name].inputs()
    structure = read_structure(model, inputs)
    removed = torch.rand(structure.count, generator=torch.Generator().manual_seed(seed)) < 0.5
    removed[list(structure.pinned)] = False
    return model, inputs, structure, removed


@pytest.mark.parametrize("name", NETWORKS)
def test_only_takes_back_and_is_idempotent(name: str) -> None:
    for seed in range(3):
        _, _, structure, removed = _at_random(name, seed)
        asked = removed.clone()
        removal = complete(structure, removed)
        assert torch.equal(removed, asked)  # what was asked for is not changed
        assert not bool((removal.removed & ~asked).any())
        assert set(removal.reasons) == set(torch.nonzero(asked & ~removal.removed).flatten().tolist())
        assert torch.equal(complete(structure, removal.removed).removed, removal.removed)
        for axis in structure.labels.axes.values():
            assert not bool(removal.removed[structure.groups(axis)].all())


@pytest.mark.parametrize("name", NETWORKS)
def test_network_runs_with_exactly_the_channels_that_stay(name: str) -> None:
    model, inputs, structure, removed = _at_random(name, 0)
    removal = complete(structure, removed)
    shapes = {n: list(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    outputs = run(model, inputs).shape
    remove(NetworkEditor(model), structure, removal)
    assert run(model, inputs).shape == outputs
    grouped = {f"{n}.weight" for n, m in build(name).named_modules() if getattr(m, "groups", 1) > 1}
    for (tensor, dim), axis in structure.labels.axes.items():
        if tensor not in grouped:
            shapes[tensor][dim] = int((~removal.removed[structure.groups(axis)]).sum())
            assert model.state_dict()[tensor].shape[dim] == shapes[tensor][dim]


def test_channels_that_nothing_reads_leave_without_a_trace() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), torch.randn(4, 3).double()
    with torch.no_grad():
        model[2].weight[:, [1, 4]] = 0
    dense, structure = deepcopy(model), read_structure(model, x)
    (group,) = (g for g in group_channels(structure) if g.pinned is None)
    removed = torch.zeros(structure.count, dtype=torch.bool)
    removed[group.ids[[1, 4]]] = True
    remove(NetworkEditor(model), structure, complete(structure, removed))
    assert torch.equal(model[0].weight, dense[0].weight[[0, 2, 3]])
    assert error_of(run(model, (x,)), run(dense, (x,))) < 1e-12


def test_nothing_to_remove_changes_nothing() -> None:
    model, inputs = build("attention_fused"), ZOO["attention_fused"].inputs()
    before, structure = deepcopy(model.state_dict()), read_structure(model, inputs)
    remove(NetworkEditor(model), structure, Removal(torch.zeros(structure.count, dtype=torch.bool)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
