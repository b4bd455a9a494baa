"""channel_groups: what shrinks with what, on networks where it is known."""

import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build


def _found(name: str) -> dict[str, lf.ChannelGroup]:
    found = lf.channel_groups(build(name), ZOO[name].inputs())
    return {group.name: group for group in found if not group.members[0].reads}


def _sides(group: lf.ChannelGroup) -> set[tuple[str, int, bool]]:
    return {(member.tensor, member.dim, member.reads) for member in group.members}


def test_chain() -> None:
    found = _found("mlp")
    assert _sides(found["0.weight"]) == {("0.weight", 0, False), ("0.bias", 0, False), ("2.weight", 1, True)}
    assert found["0.weight"].size == 16 and found["0.weight"].pinned is None
    assert torch.equal(found["0.weight"].members[0].indices, torch.arange(16)[:, None])


def test_residual_ties_both_ends_of_the_shortcut() -> None:
    group = _found("residual")["0.0.weight"]
    writers = {"0.0.weight", "0.1.weight", "0.1.bias", "0.1.running_mean", "0.1.running_var", "1.conv2.weight"}
    writers |= {f"1.bn2.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")}
    readers = {"1.conv1.weight", "2.conv1.weight", "2.shortcut.0.weight"}
    assert _sides(group) == {(name, 0, False) for name in writers} | {(name, 1, True) for name in readers}


def test_flatten_gives_each_channel_its_positions() -> None:
    group = _found("flatten")["conv2.weight"]
    (reader,) = [member for member in group.members if member.reads]
    assert reader.tensor == "fc1.weight" and torch.equal(reader.indices, torch.arange(24).reshape(6, 4))


def test_concatenation_keeps_its_parts_apart() -> None:
    sizes = {}
    for group in _found("dense").values():
        by_tensor = {(m.tensor, m.dim): m.indices for m in group.members}
        for i, layer in enumerate(["0", "1.convs.0", "1.convs.1", "1.convs.2"]):
            if (f"{layer}.weight", 0) in by_tensor:
                start, size = max(0, 1 + 5 * i), 6 if i == 0 else 5
                expected = torch.arange(start if i else 0, start + size if i else size)[:, None]
                assert torch.equal(by_tensor["2.running_mean", 0], expected)
                sizes[layer] = group.size
    assert sizes == {"0": 6, "1.convs.0": 5, "1.convs.1": 5, "1.convs.2": 5}


def test_depthwise_rows_belong_to_their_column() -> None:
    group = _found("multiplier")["1.body.0.weight"]
    (depthwise,) = [m for m in group.members if m.tensor == "1.body.3.weight"]
    assert depthwise.dim == 0 and torch.equal(depthwise.indices, torch.arange(24).reshape(12, 2))


def test_shuffle_ties_what_stands_in_line() -> None:
    """Behind a shuffle of 3 groups of 4, channel c stands with c + 4 and c + 8."""
    (group,) = [g for name, g in _found("shuffle").items() if name == "3.weight"]
    rows = group.members[0].indices
    assert torch.equal(rows.sort(1).values, torch.arange(4)[:, None] + torch.tensor([0, 4, 8]))


def test_shared_layer_is_tied_to_itself() -> None:
    group = _found("shared_linear")["first.weight"]
    assert {("shared.weight", 0, False), ("shared.weight", 1, True), ("left.weight", 1, True)} <= _sides(group)


@pytest.mark.parametrize("name", ["mlp", "residual", "dense", "option_a"])
def test_inputs_and_outputs_are_fixed(name: str) -> None:
    pinned = [g for g in lf.channel_groups(build(name), ZOO[name].inputs()) if g.pinned is not None]
    reasons = " ".join(group.pinned or "" for group in pinned)
    assert "is an output of the network" in reasons and "reads an input of fixed size" in reasons


def test_unruled_operator_is_named_with_its_layer() -> None:
    class Inner(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    model = nn.Sequential(nn.Linear(3, 4), Inner(), nn.Linear(4, 2))
    reasons = {g.members[0].dim: g.pinned for g in lf.channel_groups(model, torch.randn(2, 3)) if g.name == "0.weight"}
    assert reasons[0] == "1 (cumsum) operator cumsum has no rule"


def test_every_index_is_in_exactly_one_group() -> None:
    for name in ZOO:
        model = build(name)
        owned: dict[tuple[str, int], list[int]] = {}
        for group in lf.channel_groups(model, ZOO[name].inputs()):
            for member in group.members:
                owned.setdefault((member.tensor, member.dim), []).extend(member.indices.flatten().tolist())
        state = model.state_dict()
        assert all(sorted(indices) == list(range(state[key].shape[dim])) for (key, dim), indices in owned.items()), name


def test_str_names_both_sides() -> None:
    assert str(_found("mlp")["0.weight"]) == "16 channels: 0.weight[writes], 0.bias[writes], 2.weight[:, reads]"
