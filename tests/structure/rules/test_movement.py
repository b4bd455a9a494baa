"""Data movement: labels end where the values end."""

import pytest
import torch
from torch import nn

from tests.structure.reading import Apply, channels, constant, known, pinned

IMAGE = torch.randn(2, 3, 2, 2, dtype=torch.float64)
X = torch.randn(2, 3, dtype=torch.float64)


def test_flattened_channel_owns_a_column_for_each_position() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 3)).double()
    columns = torch.arange(8).reshape(2, 4).tolist()
    expected = [{f"0.weight[{i}]"} | {f"2.weight[:, {c}]" for c in columns[i]} for i in range(2)]
    assert channels(model, IMAGE) == expected


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.movedim(1, -1),
        lambda x: x.flatten(2).transpose(1, 2),
        lambda x: x.unsqueeze(4).transpose(1, 4).squeeze(1),
        lambda x: x.permute(0, 2, 3, 1).expand(2, 2, 2, 2).contiguous().flip(1).roll(1, 2)[:, :1],
    ],
)
def test_moved_channels_are_those_of_the_last_layer(move) -> None:
    model = Apply(lambda m, x: m.out(move(m.a(x))), a=nn.Conv2d(3, 2, 1, bias=False), out=nn.Linear(2, 3)).double()
    assert channels(model, IMAGE) == [{f"a.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]


def test_repeated_channels_own_all_their_copies() -> None:
    parts = {"a": nn.Linear(3, 2, bias=False), "out": nn.Linear(4, 3)}
    for repeat, columns in (
        ((lambda x: x.repeat(1, 2)), [(0, 2), (1, 3)]),
        ((lambda x: x.repeat_interleave(2, 1)), [(0, 1), (2, 3)]),
    ):
        model = Apply(lambda m, x, repeat=repeat: m.out(repeat(m.a(x))), **parts).double()
        expected = [{f"a.weight[{i}]"} | {f"out.weight[:, {c}]" for c in columns[i]} for i in range(2)]
        assert channels(model, X) == expected


@pytest.mark.parametrize(
    "cut",
    [lambda x: x[:, :2], lambda x: x.split([2, 2], 1)[0], lambda x: x.flip(1)[:, [0, 1]], lambda x: x.narrow(1, 1, 2)],
)
def test_channels_at_positions_that_the_code_names_stay(cut) -> None:
    model = Apply(lambda m, x: m.out(cut(m.a(x))), a=nn.Linear(3, 4), out=nn.Linear(2, 3)).double()
    assert channels(model, X) == [] and {("a.weight", 0), ("out.weight", 1)} <= pinned(model, X)


def test_equal_chunks_leave_apart() -> None:
    parts = {"a": nn.Linear(3, 4, bias=False), "b": nn.Linear(2, 3), "c": nn.Linear(2, 3)}

    def forward(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.b(left) + m.c(right)

    expected = [{f"a.weight[{i}]", f"{'bc'[i // 2]}.weight[:, {i % 2}]"} for i in range(4)]
    assert channels(Apply(forward, **parts).double(), X) == expected


def test_slice_that_takes_everything_holds_nothing() -> None:
    model = Apply(lambda m, x: m.out(m.a(x)[:, :2]), a=nn.Linear(3, 2, bias=False), out=nn.Linear(2, 3)).double()
    assert channels(model, X) == [{f"a.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]


def test_known_values_move_along() -> None:
    found = known(Apply(lambda m, x: torch.cat([x, constant(x, 4)], 1).t().flip(0)), X)
    assert torch.equal(found[:3], torch.full((3, 2), 4.0).double()) and found[3:].isnan().all()
