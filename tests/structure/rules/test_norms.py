"""Normalisations: their tensors follow the channels; what they make of constants is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.reading import Apply, channels, known, pinned
from tests.zoo import randomise

X = torch.randn(2, 3, dtype=torch.float64)
IMAGE = torch.randn(2, 3, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("norm", "leaves"),
    [
        (nn.BatchNorm2d(2), ["weight", "bias", "running_mean", "running_var"]),
        (nn.InstanceNorm2d(2, affine=True), ["weight", "bias"]),
        (nn.GroupNorm(1, 2), ["weight", "bias"]),
    ],
)
def test_tensors_of_a_norm_follow_its_channels(norm: nn.Module, leaves: list[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), norm, nn.Conv2d(2, 3, 1)).double().eval()
    expected = [{f"0.weight[{i}]", f"2.weight[:, {i}]"} | {f"1.{leaf}[{i}]" for leaf in leaves} for i in range(2)]
    assert channels(model, IMAGE) == expected


@pytest.mark.parametrize(("norm", "leaves"), [(nn.LayerNorm(2), ["weight", "bias"]), (nn.RMSNorm(2), ["weight"])])
def test_tensors_of_a_norm_over_the_last_dimension_follow(norm: nn.Module, leaves: list[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), norm, nn.Linear(2, 3)).double()
    expected = [{f"0.weight[{i}]", f"2.weight[:, {i}]"} | {f"1.{leaf}[{i}]" for leaf in leaves} for i in range(2)]
    assert channels(model, X) == expected


@pytest.mark.parametrize("norm", [lambda x: F.group_norm(x, 1), lambda x: F.layer_norm(x, (2,))])
def test_norm_whose_code_holds_the_size_keeps_the_channels(norm) -> None:
    model = Apply(lambda m, x: m.out(norm(m.a(x))), a=nn.Linear(3, 2), out=nn.Linear(2, 3)).double()
    assert channels(model, X) == [] and ("a.weight", 0) in pinned(model, X)


def _behind(norm: nn.Module, values: list[float], constant: int) -> Tensor:
    """What is known behind ``norm`` of channels of which the first ``constant`` are ``values``."""
    layer = nn.Conv2d(3, len(values), 1)
    with torch.no_grad():
        layer.weight[:constant] = 0
        layer.bias[:constant] = torch.tensor(values[:constant])
    model = nn.Sequential(layer, norm).double()
    randomise(norm)
    return known(model, IMAGE)[0, :, 0, 0]


def test_constant_through_a_batch_norm_is_the_formula() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(Tensor([0.5, 1, 2]))
    norm.running_var.copy_(Tensor([4.0, 9, 1]))
    found = _behind(norm, [2.0, -1.0, 0.0], 2)
    scale = norm.weight[:2] / (norm.running_var[:2] + norm.eps).sqrt()
    expected = (torch.tensor([2.0, -1.0]).double() - norm.running_mean[:2]) * scale + norm.bias[:2]
    torch.testing.assert_close(found[:2], expected, rtol=1e-12, atol=1e-12)
    assert found[2].isnan()


def test_constant_through_a_norm_of_its_own_statistics_is_the_bias() -> None:
    norm = nn.InstanceNorm2d(3, affine=True)
    found = _behind(norm, [2.0, -1.0, 0.0], 2)
    assert torch.equal(found[:2], norm.bias[:2]) and found[2].isnan()


def test_group_of_constants_is_known_and_a_mixed_one_is_not() -> None:
    norm = nn.GroupNorm(2, 4)
    found = _behind(norm, [1.0, 3.0, 2.0, 0.0], 3)
    expected = torch.tensor([-1.0, 1.0]).double() / (1 + norm.eps) ** 0.5 * norm.weight[:2] + norm.bias[:2]
    torch.testing.assert_close(found[:2], expected, rtol=1e-12, atol=1e-12)
    assert found[2:].isnan().all()


@pytest.mark.parametrize("norm", [nn.LayerNorm(3), nn.BatchNorm1d(3), nn.GroupNorm(1, 3)])
def test_channel_that_the_scale_makes_zero_is_the_bias(norm: nn.Module) -> None:
    norm.double()
    randomise(norm)
    with torch.no_grad():
        norm.weight[1] = 0
    found = known(norm, X)
    assert torch.equal(found[:, 1], norm.bias[1].expand(2)) and found[:, [0, 2]].isnan().all()


def test_zero_through_an_rms_norm_is_zero() -> None:
    found = known(Apply(lambda m, x: m.norm(F.pad(x, (1, 0))), norm=nn.RMSNorm(4).double()), X)
    assert torch.equal(found[:, 0], torch.zeros(2).double()) and found[:, 1:].isnan().all()
