"""Channels that become positions and back."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.structure.reading import Apply, channels, constant, known

IMAGE = torch.randn(2, 3, 2, 2, dtype=torch.float64)


def _around(move, inner: int, outer: int) -> nn.Module:
    parts = {"a": nn.Conv2d(3, inner, 1, bias=False), "out": nn.Conv2d(outer, 3, 1)}
    return Apply(lambda m, x: m.out(move(m.a(x))), **parts).double()


def test_pixel_shuffle_makes_one_channel_of_four() -> None:
    found = channels(_around(lambda x: F.pixel_shuffle(x, 2), 8, 2), IMAGE)
    assert found == [{f"a.weight[{4 * i + j}]" for j in range(4)} | {f"out.weight[:, {i}]"} for i in range(2)]


def test_pixel_unshuffle_makes_four_channels_of_one() -> None:
    found = channels(_around(lambda x: F.pixel_unshuffle(x, 2), 2, 8), IMAGE)
    assert found == [{f"a.weight[{i}]"} | {f"out.weight[:, {4 * i + j}]" for j in range(4)} for i in range(2)]


def test_channel_shuffle_ties_what_stands_in_line() -> None:
    found = channels(_around(lambda x: torch.channel_shuffle(x, 2), 4, 4), IMAGE)
    # Two groups of two: 0 1 | 2 3 become 0 2 1 3, so that places 0 and 1 hold the line of 0 and 2.
    assert found == [
        {"a.weight[0]", "a.weight[2]", "out.weight[:, 0]", "out.weight[:, 1]"},
        {"a.weight[1]", "a.weight[3]", "out.weight[:, 2]", "out.weight[:, 3]"},
    ]


def test_unfold_gives_a_column_to_each_place_of_the_window() -> None:
    parts = {"a": nn.Conv2d(3, 2, 1, bias=False), "out": nn.Linear(8, 3)}
    model = Apply(lambda m, x: m.out(F.unfold(m.a(x), 2).transpose(1, 2)), **parts).double()
    expected = [{f"a.weight[{i}]"} | {f"out.weight[:, {4 * i + j}]" for j in range(4)} for i in range(2)]
    assert channels(model, IMAGE) == expected


def test_fold_makes_one_channel_of_a_window() -> None:
    parts = {"a": nn.Linear(3, 8, bias=False), "out": nn.Conv2d(2, 3, 1)}
    model = Apply(lambda m, x: m.out(F.fold(m.a(x).transpose(1, 2), (2, 2), 2)), **parts).double()
    expected = [{f"a.weight[{4 * i + j}]" for j in range(4)} | {f"out.weight[:, {i}]"} for i in range(2)]
    assert channels(model, torch.randn(2, 1, 3, dtype=torch.float64)) == expected


def test_windows_of_a_constant_are_known_unless_zeros_stand_around() -> None:
    def both(m, x):
        return torch.cat([constant(x[:, :1], 5.0), constant(x[:, :1], 0.0), x[:, :1]], 1)

    for padding, first in ((0, 5.0), (1, torch.nan)):
        found = known(Apply(lambda m, x, padding=padding: F.unfold(both(m, x), 2, padding=padding)), IMAGE)[0, :, 0]
        expected = torch.tensor([first] * 4 + [0.0] * 4 + [torch.nan] * 4, dtype=torch.float64)
        assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


def test_sum_of_windows_is_known_where_all_are_zero() -> None:
    def forward(m, x):
        x = x.flatten(2)[:, :1].expand(-1, 4, -1)
        return F.fold(torch.cat([constant(x, 0.0), constant(x, 1.0), x], 1), (3, 3), 2)

    found = known(Apply(forward), IMAGE)
    assert torch.equal(found[:, 0], torch.zeros(2, 3, 3).double()) and found[:, 1:].isnan().all()
