"""label_channels: the run over the graph; what stands where, and what cannot leave."""

import torch
from torch import Tensor, nn

from lightning_fold.structure.constants import constants
from lightning_fold.structure.graph.trace import trace
from lightning_fold.structure.label_channels import label_channels
from lightning_fold.structure.labels import Labels
from tests.structure.reading import Apply

X = torch.randn(2, 3, dtype=torch.float64)


def _labels(model: nn.Module, **options) -> tuple[Labels, dict]:
    graph = trace(model.double(), X)
    return label_channels(graph, constants(graph), **options), dict(graph.names)


def test_every_dimension_of_more_than_one_index_has_labels_of_its_own() -> None:
    labels, _ = _labels(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))
    sizes = {key: axis.size for key, axis in labels.axes.items()}
    assert sizes == {("0.weight", 0): 4, ("0.weight", 1): 3, ("0.bias", 0): 4, ("1.weight", 1): 4}
    assert sorted(i for axis in labels.axes.values() for i in axis.labels.tolist()) == list(range(1, labels.count))


def test_tied_tensors_have_one_axis() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    labels, _ = _labels(nn.Sequential(first, second))
    assert labels.axes.keys() == {("0.weight", 0), ("0.weight", 1)}


def test_tensors_that_nothing_reads_and_integers_have_none() -> None:
    model = Apply(lambda m, x: x[:, m.index], index=nn.Identity())
    del model.index
    model.register_buffer("index", torch.tensor([0, 2]))
    model.unread = nn.Parameter(torch.randn(4))
    assert _labels(model)[0].axes == {}


def test_outputs_are_pinned_and_the_input_has_no_labels() -> None:
    labels, _ = _labels(nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)))
    pinned = {int(i) for pin in labels.pins for i in pin.labels}
    fixed = [*labels.axes["0.weight", 1].labels.tolist(), *labels.axes["1.weight", 0].labels.tolist()]
    assert pinned == set(fixed)
    image = next(value for node, value in labels.values.items() if node.op == "placeholder" and node.name == "input")
    assert image.labels == {} and image.shape == X.shape


def test_contractions_are_recorded_in_order() -> None:
    labels, names = _labels(nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)))
    first, second = labels.contractions
    assert [names[each.weight] for each in (first, second)] == ["0.weight", "2.weight"]
    assert first.columns is None and torch.equal(first.rows, labels.axes["0.weight", 0].labels)
    assert isinstance(second.columns, Tensor) and torch.equal(second.columns, first.rows)
    assert [each.groups for each in (first, second)] == [1, 1] and first.bias is None
