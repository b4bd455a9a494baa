"""Channels beside others: each keeps its own place."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.structure.reading import Apply, channels, constant, known, pinned

X = torch.randn(2, 3, dtype=torch.float64)


def _joined(function, outputs: int) -> nn.Module:
    parts = {name: nn.Linear(3, 2, bias=False) for name in ("a", "b")}
    return Apply(lambda m, x: m.out(function(m.a(x), m.b(x))), **parts, out=nn.Linear(outputs, 3)).double()


def test_concatenated_channels_are_read_one_behind_the_other() -> None:
    model = _joined(lambda a, b: torch.cat([a, b], 1), 4)
    expected = [
        {f"{part}.weight[{i}]", f"out.weight[:, {start + i}]"} for part, start in (("a", 0), ("b", 2)) for i in (0, 1)
    ]
    assert channels(model, X) == expected


def test_concatenated_positions_share_their_channels() -> None:
    model = _joined(lambda a, b: torch.cat([a, b], 0), 2)
    assert channels(model, X) == [{f"a.weight[{i}]", f"b.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]


def test_stacked_values_share_their_channels() -> None:
    model = _joined(lambda a, b: torch.stack([a, b], 1), 2)
    assert channels(model, X) == [{f"a.weight[{i}]", f"b.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]


def test_input_beside_channels_holds_its_own_columns_alone() -> None:
    model = Apply(
        lambda m, x: m.out(torch.cat([x, m.a(x)], 1)), a=nn.Linear(3, 2, bias=False), out=nn.Linear(5, 3)
    ).double()
    assert channels(model, X) == [{f"a.weight[{i}]", f"out.weight[:, {3 + i}]"} for i in range(2)]


def test_padded_channels_are_read_behind_the_padding() -> None:
    model = Apply(
        lambda m, x: m.out(F.pad(m.a(x), (1, 2))), a=nn.Linear(3, 2, bias=False), out=nn.Linear(5, 3)
    ).double()
    assert channels(model, X) == [{f"a.weight[{i}]", f"out.weight[:, {1 + i}]"} for i in range(2)]


def test_channels_that_are_cropped_stay() -> None:
    model = Apply(lambda m, x: m.out(F.pad(m.a(x), (-1, 0))), a=nn.Linear(3, 3), out=nn.Linear(2, 3)).double()
    assert channels(model, X) == [] and ("a.weight", 0) in pinned(model, X)


def test_gate_leaves_with_what_it_opens() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.GLU(), nn.Linear(2, 3)).double()
    assert channels(model, X) == [{f"0.weight[{i}]", f"0.weight[{2 + i}]", f"2.weight[:, {i}]"} for i in range(2)]


def test_padding_is_a_known_constant_beside_what_depends() -> None:
    found = known(Apply(lambda m, x: F.pad(torch.cat([x, constant(x, 1.0)], 1), (1, 0), value=7.0)), X)
    assert torch.equal(found[0].nan_to_num(-1), torch.tensor([7.0, -1, -1, -1, 1, 1, 1], dtype=torch.float64))
