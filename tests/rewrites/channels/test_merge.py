"""Merging: producers take means, consumers sums."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_fold.rewrites.channels.merge import combine, fold_ar, fold_ar_scale, is_whole, targets
from lightning_fold.rewrites.reduction.cut import merge
from lightning_fold.structure.groups import group_channels, read_structure
from lightning_fold.surgery.editor import NetworkEditor
from tests.zoo import ZOO, build


def test_targets_keep_positions_apart_after_a_flatten() -> None:
    groups = torch.tensor([4, 4, 7, 7, 5, 5])  # three channels with two positions each
    cluster_of = torch.arange(8)
    cluster_of[7] = 4
    assert targets(groups, cluster_of).tolist() == [0, 1, 0, 1, 4, 5]
    assert targets(groups, torch.arange(8)).tolist() == list(range(6))


def test_rows_become_means_and_columns_sums() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    dense, x = deepcopy(model), torch.randn(2, 3, dtype=torch.float64)
    structure = read_structure(model, x)
    (group,) = (g for g in group_channels(structure) if g.pinned is None)
    cluster_of = torch.arange(structure.count)
    cluster_of[group.ids[[2, 3]]] = group.ids[0]
    combine(NetworkEditor(model), structure, cluster_of)
    merged = [0, 2, 3]
    torch.testing.assert_close(model[0].weight[0], dense[0].weight[merged].mean(0))
    torch.testing.assert_close(model[0].bias[0], dense[0].bias[merged].mean())
    torch.testing.assert_close(model[2].weight[:, 0], dense[2].weight[:, merged].sum(1))
    assert torch.equal(model[0].weight[1], dense[0].weight[1]) and torch.equal(model[2].bias, dense[2].bias)
    assert model[0].weight.shape == dense[0].weight.shape


@pytest.mark.parametrize("name", ["mlp", "residual", "grouped", "attention_apart"])
def test_clusters_of_one_change_nothing(name: str) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    dense, structure = deepcopy(model), read_structure(model, inputs)
    merge(NetworkEditor(model), structure, torch.arange(structure.count))
    found, expected = model.state_dict(), dense.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_fold_ar_at_its_extremes() -> None:
    row = torch.randn(1, 7, dtype=torch.float64)
    identical, orthogonal = row.repeat(5, 1), torch.eye(5, dtype=torch.float64)
    one_cluster = torch.ones(1, 5, dtype=torch.float64)
    assert float(fold_ar_scale(identical, one_cluster)) == pytest.approx(1.0, abs=1e-12)
    assert float(fold_ar_scale(orthogonal, one_cluster)) == pytest.approx(5**0.5, abs=1e-12)
    alone = fold_ar_scale(torch.randn(3, 4, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(alone, torch.ones(3, dtype=torch.float64))


def test_fold_ar_against_the_formula_pair_by_pair() -> None:
    torch.manual_seed(0)
    rows, labels = torch.randn(6, 11, dtype=torch.float64), [0, 1, 0, 0, 1, 0]
    found = fold_ar_scale(rows, torch.nn.functional.one_hot(torch.tensor(labels)).T.double())
    for cluster in (0, 1):
        members = [i for i, label in enumerate(labels) if label == cluster]
        size = len(members)
        cosines = [float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for i in members for j in members if i != j]
        mean = sum(cosines) / len(cosines)
        assert float(found[cluster]) == pytest.approx(size / (size + (size**2 - size) * mean) ** 0.5, rel=1e-12)


def test_scale_of_fold_ar_does_not_see_the_length_of_rows() -> None:
    rows, membership = torch.randn(4, 6, dtype=torch.float64), torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 1]]).double()
    scaled = rows * torch.tensor([[0.2], [3.0], [1.0], [5.0]])
    torch.testing.assert_close(fold_ar_scale(rows, membership), fold_ar_scale(scaled, membership))
    assert float(fold_ar_scale(rows, membership)[1]) == pytest.approx(1.0)


def test_fold_ar_has_factors_only_for_norms_behind_merged_layers() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
    )
    structure = read_structure(model.double().eval(), torch.randn(2, 3, dtype=torch.float64))
    group = next(g for g in group_channels(structure) if g.name == "0.weight")
    cluster_of = torch.arange(structure.count)
    assert fold_ar(NetworkEditor(model), structure, cluster_of) == {}
    cluster_of[group.ids[3]] = group.ids[1]
    (name, factors), *others = fold_ar(NetworkEditor(model), structure, cluster_of).items()
    cosine = nn.functional.cosine_similarity(model[0].weight[1], model[0].weight[3], dim=0).item()  # gamma is 1
    assert name == "1.weight" and not others
    torch.testing.assert_close(factors, torch.tensor([1.0, 2 / (2 + 2 * cosine) ** 0.5, 1.0, 1.0]).double())


def test_heads_are_whole_where_all_their_channels_are_one() -> None:
    assert is_whole(torch.tensor([[3, 3], [5, 5]]))
    assert not is_whole(torch.tensor([[3, 3], [5, 6]])) and not is_whole(torch.tensor([[3], [5]]))
