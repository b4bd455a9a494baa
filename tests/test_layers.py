from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.layers import CompensatedLayerNorm, CompensatedNorm, CompensatedRMSNorm, SelectFeatures


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_selects_features_of_the_last_dimension(shape):
    features = torch.randn(shape)
    torch.testing.assert_close(SelectFeatures(torch.tensor([4, 0, 4]))(features), features[..., [4, 0, 4]])


def test_state_dict_brings_the_positions_back():
    layer, empty = SelectFeatures(torch.tensor([5, 2])), SelectFeatures(2)
    features = torch.randn(4, 6)
    torch.testing.assert_close(empty(features), features[:, :2])
    empty.load_state_dict(layer.state_dict())
    torch.testing.assert_close(empty(features), features[:, [5, 2]])
    assert not list(layer.parameters())
    assert repr(layer) == "SelectFeatures(2 features)"


_HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", _HALVES)
@pytest.mark.parametrize(("kind", "own"), [(CompensatedLayerNorm, nn.LayerNorm), (CompensatedRMSNorm, nn.RMSNorm)])
def test_half_precision_is_computed_as_torch_computes_it(kind, own, dtype) -> None:
    """The squares of these values are beyond the largest number of 16 bits."""
    torch.manual_seed(0)
    norm, reference = kind(1024, eps=1e-5), own(1024, eps=1e-5)
    for tensor in reference.parameters():
        nn.init.normal_(tensor)
    norm.load_state_dict(reference.state_dict(), strict=False)
    value = (300 * torch.randn(2, 1024)).to(dtype)
    expected = reference.to(dtype)(value)
    found = norm.to(dtype)(value)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", _HALVES)
def test_what_was_counted_outlives_a_cast_to_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = CompensatedLayerNorm(8)
    norm.counts = torch.tensor([3001.0, 257, 1, 1, 1, 1, 1, 1])
    norm.absorb(100 * torch.randn(50))
    half = deepcopy(norm).to(dtype)
    assert half.weight.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(half.buffers(), norm.buffers(), strict=True))
    value = torch.randn(3, 8).to(dtype)
    torch.testing.assert_close(half(value).float(), norm(value.float()), rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert {tensor.dtype for tensor in norm.double().state_dict().values()} == {torch.float64}
    assert norm(torch.randn(3, 8, dtype=torch.float64)).dtype == torch.float64


def test_autocast_gives_what_torch_gives_from_single_precision() -> None:
    torch.manual_seed(0)
    linear, norm, own = nn.Linear(16, 64), CompensatedLayerNorm(64), nn.LayerNorm(64)
    value = 100 * torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = linear(value)
        found = norm(given)
    assert given.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, own(given.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", _HALVES)
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_norm_in_half_precision_minimizes(kind: type[nn.Module], dtype: torch.dtype) -> None:
    """Constants of which the squares are beyond the largest number of 16 bits leave a norm with a default eps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 96), kind(96), nn.Linear(96, 4)).eval()
    with torch.no_grad():
        model[0].weight[32:] = 0
        model[0].bias[32:] = 60 * torch.randn(64)
        model[2].weight[:, 32:] = 0
    model, x = model.to(dtype), torch.randn(5, 6).to(dtype)
    expected = model(x).detach().float()
    lf.minimize(model, x)
    assert model[0].out_features == 32 and isinstance(model[1], CompensatedNorm)
    assert float((model(x).detach().float() - expected).abs().max()) <= 8 * torch.finfo(dtype).eps * float(
        expected.abs().max()
    )
