"""Matrix views: two layers for a product of matrices, one layer for two."""

import pytest
import torch
from torch import nn

from lightning_fold.errors import ArgumentError
from lightning_fold.rewrites.factorization.matrix_views import MatrixView, matrix_views, moments_of, product, reads_less
from lightning_fold.surgery.editor import NetworkEditor

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), (3, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), (2, 1), padding=(1, 0), dilation=(1, 2)), (3, 7, 8)),
    "same_reflect": (lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect", bias=False), (3, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
}


def _views(name: str) -> tuple[list[MatrixView], torch.Tensor]:
    torch.manual_seed(0)
    make, size = LAYERS[name]
    return matrix_views("layer", make().double()), torch.randn(4, *size, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_pair_of_the_full_rank_computes_the_layer_and_its_product_is_the_layer(name: str) -> None:
    views, x = _views(name)
    assert len(views) == (2 if name in ("conv2d", "same_reflect") else 1)
    for view in views:
        left, values, right = torch.linalg.svd(view.matrix, full_matrices=False)
        pair = view.pair(left * values, right)
        torch.testing.assert_close(pair(x), view.layer(x), rtol=1e-10, atol=1e-12)
        assert pair[1].bias is view.layer.bias
        network = nn.Sequential(view.layer)
        NetworkEditor(network).replace_module("0", pair)
        again = product(network[0])
        assert type(again) is type(view.layer)
        torch.testing.assert_close(again.weight, view.layer.weight, rtol=1e-10, atol=1e-12)
        assert again.bias is view.layer.bias


@pytest.mark.parametrize("name", LAYERS)
def test_pair_of_a_lower_rank_computes_the_product_of_the_matrices(name: str) -> None:
    views, x = _views(name)
    for view in views:
        rows, columns = view.matrix.shape
        outer, inner = torch.randn(rows, 2).double(), torch.randn(2, columns).double()
        full = view.pair(torch.eye(rows).double(), outer @ inner)
        torch.testing.assert_close(view.pair(outer, inner)(x), full(x), rtol=1e-10, atol=1e-12)


def test_pair_is_trained_and_frozen_as_the_layer_was() -> None:
    layer = nn.Linear(3, 3).requires_grad_(False).eval()
    pair = matrix_views("0", layer)[0].pair(torch.ones(3, 1), torch.ones(1, 3))
    assert not pair.training and not any(parameter.requires_grad for parameter in pair.parameters())


def test_other_modules_are_no_product() -> None:
    assert product(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))) is None
    assert product(nn.Linear(3, 3)) is None


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 4), (3, 6)])
def test_moments_are_of_the_outputs_or_of_what_fewer_columns_read(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs).double()
    (view,) = matrix_views("0", layer)
    batches = [torch.randn(8, inputs, dtype=torch.float64) for _ in range(2)]
    (found,) = moments_of(nn.Sequential(layer), batches[0], batches, [view]).values()
    read = torch.cat(batches)
    values = read if reads_less(view) else read @ layer.weight.detach().T
    assert reads_less(view) == (inputs < outputs)
    torch.testing.assert_close(found, values.T @ values)


def test_moments_of_a_column_against_windows_cut_by_unfold() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(4, 2, 5, 5, dtype=torch.float64)
    whole = matrix_views("0", layer)[0]
    outputs = layer.weight.detach().flatten(1) @ nn.functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
    found = moments_of(nn.Sequential(layer), x, [x], [whole])[id(whole)]
    torch.testing.assert_close(found, outputs @ outputs.T)


def test_moments_without_a_batch_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ArgumentError, match="batch"):
        moments_of(model, torch.randn(2, 3), [], matrix_views("0", model[0]))
