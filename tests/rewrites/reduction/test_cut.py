"""The cut: means and sums of clusters, without the channels that go."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lightning_fold.rewrites.channels.widths import find_prunable_groups
from lightning_fold.rewrites.reduction.cut import merge, plan_cut
from lightning_fold.rewrites.reduction.selector import ChannelSelector
from lightning_fold.structure.groups import read_structure
from lightning_fold.surgery.editor import NetworkEditor
from lightning_fold.surgery.transaction import Surgery
from tests.zoo import ZOO, build


def test_mean_and_sum_against_dense_projection() -> None:
    """The folded network is the dense one with C = U (U^T U)^-1 U^T after the hidden layer's weight and bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)).double()
    dense, x = deepcopy(model), torch.randn(5, 6, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 3, 3, 2])
    u = torch.nn.functional.one_hot(labels).double()
    projection = u @ torch.linalg.inv(u.T @ u) @ u.T
    structure = read_structure(model, x)
    groups = structure.groups(structure.labels.axes["0.weight", 0])
    first = torch.tensor([labels.tolist().index(label) for label in labels.tolist()])
    cluster_of = torch.arange(structure.count)
    cluster_of[groups] = groups[first]
    with Surgery(model) as surgery:
        merge(surgery, structure, cluster_of)
    expected = (x @ dense[0].weight.T + dense[0].bias) @ projection @ dense[1].weight.T + dense[1].bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-13)
    inverse = torch.linalg.inv(u.T @ u)
    torch.testing.assert_close(model[0].weight, inverse @ u.T @ dense[0].weight, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(model[1].weight, dense[1].weight @ u, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("assignment", [[0, 0, 1, -1, 2, 1], [-1, 2, -1, 1, 0, -1], [0, 0, 0, 0, 0, 0]])
def test_network_is_the_one_with_a_mean_and_a_sum_for_each_cluster(assignment: list[int]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(5, 4).double()
    first, last = deepcopy(model[0]), deepcopy(model[2])
    structure, widths = find_prunable_groups("fold", model, x)
    editor = NetworkEditor(model)
    cut = plan_cut(editor, structure, ChannelSelector(), widths, [torch.tensor(assignment)])
    cut.rescaling.apply(editor)
    cut.apply(editor)
    clusters = [[i for i, label in enumerate(assignment) if label == k] for k in range(max(assignment) + 1)]
    hidden = [torch.tanh(x @ first.weight[c].mean(0) + first.bias[c].mean()) for c in clusters]
    expected = sum((torch.outer(h, last.weight[:, c].sum(1)) for h, c in zip(hidden, clusters, strict=True)), last.bias)
    assert model[0].out_features == len(clusters)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    found = cut.means(widths[0].group.ids)
    assert found.shape == (len(clusters), 6)
    for row, cluster in zip(found.tolist(), sorted(clusters), strict=True):
        assert row == [(i in cluster) / len(cluster) for i in range(6)]


def test_channels_that_must_stay_even_are_by_themselves_again() -> None:
    """One group of a convolution keeps all of its channels: so does the other."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    structure, widths = find_prunable_groups("fold", model, torch.randn(2, 3, 2, 2))
    assignments = [torch.tensor([0, 0, 1, 2]), torch.arange(4)]
    cut = plan_cut(NetworkEditor(model), structure, ChannelSelector(), widths, assignments)
    assert not bool(cut.removal.removed.any())
    assert torch.equal(cut.cluster_of, torch.arange(structure.count))
    assert cut.staying(widths[0].group.ids).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["residual", "attention_fused"])
def test_every_channel_by_itself_changes_nothing(name: str) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    before, (structure, widths) = deepcopy(model.state_dict()), find_prunable_groups("fold", model, inputs)
    editor, each = NetworkEditor(model), [torch.arange(width.group.size) for width in widths]
    cut = plan_cut(editor, structure, ChannelSelector(), widths, each)
    cut.rescaling.apply(editor)
    cut.apply(editor)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
