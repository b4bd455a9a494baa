"""Liveness: a channel is alive if, and only if, some change of it changes the output (checked by trying)."""

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.structure.groups import Structure, read_structure
from lightning_fold.structure.liveness import live_groups
from tests.structure.reading import Apply

X = torch.randn(4, 3, dtype=torch.float64)


def _alive(structure: Structure, tensor: str, **options) -> list[bool]:
    axis = structure.labels.axes[tensor, 0]
    return live_groups(structure, **options)[structure.groups(axis)].tolist()


def _matters(model: nn.Module, tensor: str) -> list[bool]:
    """Whether the output changes with row ``i`` of a weight."""
    weight, found = model.get_parameter(tensor).data, []
    with torch.no_grad():
        before = model(X)
        for i in range(len(weight)):
            row = weight[i].clone()
            weight[i] += 1.0
            found.append(not torch.equal(model(X), before))
            weight[i] = row
    return found


def _masked_chain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= torch.rand_like(layer.weight) < 0.35
        model[0].weight[:, 0] += 0.1  # no constants: these are another matter
        model[2].weight[:, 0] += 0.1
    return model


@pytest.mark.parametrize("seed", range(4))
def test_alive_is_what_matters_in_a_chain(seed: int) -> None:
    model = _masked_chain(seed)
    structure = read_structure(model, X)
    for tensor in ("0.weight", "2.weight", "4.weight"):
        assert _alive(structure, tensor) == _matters(model, tensor)


def test_constant_is_read_by_fixed_contractions_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = torch.tensor([0.0, 5.0])
        model[1].weight.fill_(1)
    structure = read_structure(model, X)
    last = structure.labels.contractions[-1].node
    assert _alive(structure, "0.weight") == [False, False, True]
    assert _alive(structure, "0.weight", fixed={last}) == [False, True, True]


@pytest.mark.parametrize(("norm", "expected"), [(nn.LayerNorm(4), True), (nn.BatchNorm1d(4), False)])
def test_norm_reads_what_shares_statistics(norm: nn.Module, expected: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    assert _alive(read_structure(model, X), "0.weight") == [True, expected, True, True]


def test_channel_behind_a_gate_of_zero_is_not_read() -> None:
    model = Apply(
        lambda m, x: m.b(m.a(x) * m.gate), a=nn.Linear(3, 3), b=nn.Linear(3, 2), gate=nn.Parameter(Tensor([1, 0, 1]))
    )
    assert _alive(read_structure(model.double(), X), "a.weight") == [True, False, True]


def test_queries_and_keys_are_read_where_both_are_other_than_zero() -> None:
    parts = {name: nn.Linear(3, 3, bias=False) for name in ("q", "k", "v")}
    model = Apply(lambda m, x: (m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1) @ m.v(x), **parts).double()
    with torch.no_grad():
        model.q.weight[0], model.k.weight[1] = 0, 0
    structure = read_structure(model, torch.randn(2, 4, 3, dtype=torch.float64))
    assert _alive(structure, "q.weight") == _alive(structure, "k.weight") == [False, False, True]


def test_needs_of_each_node_are_what_is_read_of_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[1].weight[:, 1] = 0
    structure, needed = read_structure(model, X), {}
    live_groups(structure, needed_at=needed)
    first, second = (contraction.node for contraction in structure.labels.contractions)
    rows = [structure.groups(structure.labels.axes[name, 0]) for name in ("0.weight", "1.weight")]
    assert needed[first][rows[0]].tolist() == [True, False, True] and needed[second][rows[1]].all()
    assert not needed[second][rows[0]].any()
