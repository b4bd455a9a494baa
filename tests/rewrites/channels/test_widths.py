"""Prunable groups: widths, blocks, bundles and what keeps them."""

import pytest
import torch
from torch import nn

from lightning_fold.errors import ArgumentError
from lightning_fold.rewrites.channels.widths import (
    check_patterns,
    find_bundles,
    find_prunable_groups,
    hold_bundles,
    kept_groups,
    pinned_groups,
)
from lightning_fold.structure.groups import read_structure
from tests.zoo import ZOO, build


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


def test_hidden_widths_of_a_chain_with_their_writers_and_readers() -> None:
    _, widths = find_prunable_groups("prune", _mlp(), torch.randn(2, 3))
    assert [(w.size, w.writers) for w in widths] == [(6, ["0", "0"]), (4, ["2", "2"])]
    assert [set(w.layers) for w in widths] == [{"0", "2"}, {"2", "4"}]
    assert widths[0].skipped(["4"]) is None and "2" in str(widths[0].skipped(["4", "2"]))


def test_groups_of_a_convolution_are_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    _, widths = find_prunable_groups("prune", model, torch.randn(2, 3, 4, 4))
    assert [[block.tolist() for block in width.blocks] for width in widths] == [
        [[0, 1, 2], [3, 4, 5]],
        [[0, 1, 2, 3], [4, 5, 6, 7]],
    ]


@pytest.mark.parametrize("name", ["residual", "grouped", "attention_fused", "gate", "dense"])
def test_blocks_part_the_channels_and_widths_share_none(name: str) -> None:
    _, widths = find_prunable_groups("prune", build(name), ZOO[name].inputs())
    ids = torch.cat([width.group.ids for width in widths])
    assert len(ids.unique()) == len(ids)
    for width in widths:
        assert torch.cat(list(width.blocks)).sort().values.tolist() == list(range(width.group.size))
        assert all(width.kept_in(block, width.size) == len(block) for block in width.blocks)


@pytest.mark.parametrize("name", ["residual", "grouped", "attention_fused", "attention_by_hand"])
def test_bundles_part_the_widths(name: str) -> None:
    structure, widths = find_prunable_groups("prune", build(name), ZOO[name].inputs())
    bundles = find_bundles(structure, widths)
    assert sorted(i for bundle in bundles for i in bundle) == list(range(len(widths)))
    assert all(len({widths[i].size for i in bundle}) == 1 for bundle in bundles)


def test_what_must_keep_as_many_stays_as_well() -> None:
    structure, widths = find_prunable_groups("prune", build("attention_fused"), ZOO["attention_fused"].inputs())
    together = next(bundle for bundle in find_bundles(structure, widths) if len(bundle) > 1)
    reasons = ["mine" if i == together[0] else None for i in range(len(widths))]
    refused, left = hold_bundles(structure, widths, reasons)
    names = [width.group.name for width, _ in refused]
    assert names == [widths[i].group.name for i in together]
    assert len(left) == len(widths) - len(together)
    assert hold_bundles(structure, widths, [None] * len(widths)) == ([], widths)


def test_networks_without_a_width_and_nan_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"prune.*Linear"):
        find_prunable_groups("prune", nn.Linear(3, 2), torch.randn(2, 3))
    model = _mlp()
    nn.init.constant_(model[2].bias, float("nan"))
    with pytest.raises(ArgumentError, match=r"2\.bias"):
        find_prunable_groups("prune", model, torch.randn(2, 3))


@pytest.mark.parametrize("patterns", [["1"], ["0", "nowhere*"], ["*"]])
def test_patterns_that_keep_nothing_or_all_are_refused(patterns: list[str]) -> None:
    _, widths = find_prunable_groups("prune", _mlp(), torch.randn(2, 3))
    check_patterns("prune", widths, ["0"])
    with pytest.raises(ArgumentError, match="skip"):
        check_patterns("prune", widths, patterns)


def test_what_an_operator_without_a_rule_holds_is_listed() -> None:
    structure = read_structure(build("unruled"), ZOO["unruled"].inputs())
    assert [(kept.tensor, kept.channels) for kept in kept_groups(structure)] == [("second.weight", 10)]
    assert {kept.tensor for kept in kept_groups(structure)} <= {kept.tensor for kept in pinned_groups(structure)}
    assert kept_groups(read_structure(_mlp(), torch.randn(2, 3))) == []
