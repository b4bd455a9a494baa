"""Linear layers, convolutions, embeddings: what is tied and what is known, by hand."""

import torch
from torch import nn

from tests.structure.reading import Apply, channels, known, pinned

X = torch.randn(2, 3, dtype=torch.float64)
IMAGE = torch.randn(2, 2, 4, 4, dtype=torch.float64)


def _set(layer: nn.Module, weight: list, bias: list | None = None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight).reshape(layer.weight.shape))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def test_row_belongs_to_its_bias_and_to_the_columns_that_read_it() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)).double()
    assert channels(model, X) == [{f"0.weight[{i}]", f"0.bias[{i}]", f"1.weight[:, {i}]"} for i in range(2)]
    assert pinned(model, X) == {("0.weight", 1), ("1.weight", 0), ("1.bias", 0)}


def test_transposed_convolution_holds_its_columns_first() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(3, 2, 2), nn.Conv2d(2, 4, 1, bias=False)).double()
    first = [{f"0.weight[{i}]", f"0.bias[{i}]", f"1.weight[{i}]"} for i in range(3)]
    assert channels(model, IMAGE) == first + [
        {f"1.weight[:, {i}]", f"1.bias[{i}]", f"2.weight[:, {i}]"} for i in (0, 1)
    ]


def test_transposed_convolution_with_groups_stays() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Conv2d(4, 2, 1)).double()
    assert channels(model, IMAGE) == [] and ("0.weight", 0) in pinned(model, IMAGE)


def test_depthwise_row_belongs_to_its_channel() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.Conv2d(3, 2, 1, bias=False)
    ).double()
    assert channels(model, IMAGE) == [{f"0.weight[{i}]", f"1.weight[{i}]", f"2.weight[:, {i}]"} for i in range(3)]


def test_columns_of_an_embedding_leave_and_its_rows_stay() -> None:
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 3, bias=False)).double()
    words = torch.tensor([[0, 1]])
    assert channels(model, words) == [{f"0.weight[:, {i}]", f"1.weight[:, {i}]"} for i in range(2)]
    assert ("0.weight", 0) in pinned(model, words)


def test_bilinear_layer_reads_two_sides() -> None:
    parts = {"a": nn.Linear(3, 2, bias=False), "b": nn.Linear(3, 2, bias=False), "join": nn.Bilinear(2, 2, 4)}
    model = Apply(lambda m, x: m.join(m.a(x), m.b(x)), **parts).double()
    sides = [("a", ":, "), ("b", ":, :, ")]
    assert channels(model, X) == [{f"{s}.weight[{i}]", f"join.weight[{dims}{i}]"} for s, dims in sides for i in (0, 1)]


def test_row_is_known_where_its_weights_meet_known_values_alone() -> None:
    first = _set(nn.Linear(3, 2).double(), [[1.0, 0, 2], [0, 0, 0]], [5.0, 7.0])
    second = _set(nn.Linear(2, 3).double(), [[1.0, 1], [0, 2], [0, 0]], [0.5, 0.5, 0.25])
    expected = torch.tensor([torch.nan, 2 * 7 + 0.5, 0.25], dtype=torch.float64).expand(2, 3)
    assert torch.equal(known(nn.Sequential(first, second), X).nan_to_num(-1), expected.nan_to_num(-1))


def test_constant_is_unknown_behind_a_border_of_zeros_unless_it_is_zero() -> None:
    first = _set(nn.Conv2d(2, 2, 1).double(), [0.0] * 4, [3.0, 0.0])
    for padding, expected in ((0, [27.0, 0.0]), (1, [torch.nan, 0.0])):
        second = nn.Conv2d(2, 2, 3, padding=padding, groups=2, bias=False).double()
        second = _set(second, [1.0] * 18)
        found = known(nn.Sequential(first, second), IMAGE)[0, :, 1, 1]
        assert torch.equal(found.nan_to_num(-1), torch.tensor(expected, dtype=torch.float64).nan_to_num(-1))
