"""Clusters: found again where they were planted, whatever the order and the length of the rows."""

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.rewrites.channels.widths import PrunableGroup, find_prunable_groups
from lightning_fold.rewrites.reduction.clustering import Clustering, _features

PLANTED = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 2])


def _planted(order: Tensor, act: nn.Module) -> nn.Sequential:
    """Nine channels in three clusters, a thousandth apart; behind a ReLU of any length."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), act, nn.Linear(9, 4)).double()
    rows, columns, noise = (torch.randn(n, 7, dtype=torch.float64) for n in (3, 3, 9))
    length = 0.5 + torch.rand(9, 1, dtype=torch.float64) if isinstance(act, nn.ReLU) else 1.0
    rows = ((rows[PLANTED] + 1e-3 * noise) * length)[order]
    with torch.no_grad():
        model[0].weight.copy_(rows[:, :5])
        model[0].bias.copy_(rows[:, 5])
        model[2].weight.copy_(columns[PLANTED][order, :4].T)
    return model


def _clustering(model: nn.Module) -> tuple[Clustering, PrunableGroup]:
    structure, (width,) = find_prunable_groups("fold", model, torch.randn(2, 5, dtype=torch.float64))
    return Clustering(model, structure, seed=0), width


def _pairs(labels: Tensor) -> Tensor:
    return labels[:, None] == labels[None]


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_clusters_are_found_in_any_order(act: nn.Module, seed: int) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    clustering, width = _clustering(_planted(order, act))
    for find in (clustering.assign, clustering.approximate):
        assert torch.equal(_pairs(find(width, 3)), _pairs(PLANTED[order]))


@pytest.mark.parametrize("wanted", range(1, 10))
def test_as_many_clusters_as_asked_for_numbered_from_zero(wanted: int) -> None:
    clustering, width = _clustering(_planted(torch.arange(9), nn.Tanh()))
    for find in (clustering.assign, clustering.approximate):
        assert find(width, wanted).unique().tolist() == list(range(wanted))
        assert torch.equal(find(width, wanted), find(width, wanted))


def test_clusters_never_reach_over_blocks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    structure, widths = find_prunable_groups("fold", model, torch.randn(2, 3, 2, 2))
    found = Clustering(model, structure, seed=0).assign(widths[0], 2)
    assert [len(found[block].unique()) for block in widths[0].blocks] == [2, 2] and len(found.unique()) == 4


def test_scales_are_lengths_behind_a_relu_and_one_behind_a_tanh() -> None:
    for act in (nn.ReLU(), nn.Tanh()):
        model = _planted(torch.arange(9), act)
        clustering, width = _clustering(model)
        lengths = (model[0].weight.square().sum(1) + model[0].bias.square()).sqrt().detach()
        expected = lengths if isinstance(act, nn.ReLU) else torch.ones(9, dtype=torch.float64)
        torch.testing.assert_close(clustering.scales(width), expected)


def test_many_channels_start_from_a_tree(monkeypatch) -> None:
    """Where k-means++ would take minutes; over some networks the clusters are about as good as its best of three."""

    def spread(clustering: Clustering, width: PrunableGroup, assignment: Tensor) -> float:
        """Weighted squared distances to the means of the clusters."""
        points, weights = _features(*clustering._describe(width))
        weighted = weights[:, None] * points
        means = [weighted[assignment == k].sum(0) / weights[assignment == k].sum() for k in range(24)]
        return float((weights[:, None] * (points - torch.stack(means)[assignment]).square()).sum())

    best, found = 0.0, 0.0
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 5)).double()
        with torch.no_grad():
            model[0].weight[30:] = model[0].weight[:30] + 0.3 * torch.randn(30, 20, dtype=torch.float64)
        structure, (width,) = find_prunable_groups("fold", model, torch.randn(2, 20, dtype=torch.float64))
        clustering = Clustering(model, structure, seed=0)
        best += spread(clustering, width, clustering.assign(width, 24))
        with monkeypatch.context() as patched:
            patched.setattr("lightning_fold.rewrites.reduction.clustering._PRODUCTS", 0)
            assignment = clustering.assign(width, 24)
        assert len(assignment.unique()) == 24
        ours = spread(clustering, width, assignment)
        assert ours <= spread(clustering, width, clustering.approximate(width, 24))
        found += ours
    assert found <= 1.05 * best
