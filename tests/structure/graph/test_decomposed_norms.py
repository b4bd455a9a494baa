"""Norms that a module writes out: each is read as one operator with its numbers, and nothing else is."""

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.structure.graph.trace import trace
from lightning_fold.structure.operators.nodes import (
    WRITTEN_NORMS,
    norm_eps,
    norm_offset,
    norm_precision,
    normalised_dims,
    operator_name,
)


class Norm(nn.Module):
    """A norm over 4 channels, as ``function(self, x)``."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _rms(m, x):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 0.25) * m.weight


def _rms_of_offset(m, x):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 0.25) * (1.0 + m.weight)


def _rms_in_single(m, x):
    y = x.to(torch.float32)
    return m.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 0.25)).to(x.dtype)


def _layer(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return m.weight * (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 0.25)) + m.bias


def _layer_of_variance(m, x):
    scale = torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 0.25)
    return (x - x.mean(-1, keepdim=True)) * scale * m.weight + m.bias


def _found(function, dtype: torch.dtype = torch.float64) -> list:
    graph = trace(
        nn.Sequential(nn.Linear(3, 4), Norm(function), nn.Linear(4, 2)).to(dtype), torch.randn(2, 5, 3, dtype=dtype)
    )
    return [node for node in graph.graph.nodes if operator_name(node) in WRITTEN_NORMS]


@pytest.mark.parametrize(
    ("function", "name", "offset"),
    [
        (_rms, "written_rms_norm", 0.0),
        (_rms_of_offset, "written_rms_norm", 1.0),
        (_layer, "written_layer_norm", 0.0),
        (_layer_of_variance, "written_layer_norm", 0.0),
    ],
)
def test_norm_is_one_operator_with_its_numbers(function, name: str, offset: float) -> None:
    (node,) = _found(function)
    assert operator_name(node) == name and normalised_dims(node) == (2,)
    assert (norm_eps(node), norm_offset(node), norm_precision(node)) == (0.25, offset, None)


def test_precision_of_the_statistics_is_kept() -> None:
    (node,) = _found(_rms_in_single, torch.bfloat16)
    assert norm_precision(node) == "float32"


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 0.25) * m.weight,
        lambda m, x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 0.25) * m.weight,
        lambda m, x: x * torch.rsqrt(x.pow(2).mean((1, 2), keepdim=True) + 0.25) * m.weight,
        lambda m, x: (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True) + 0.25) * m.weight,
        lambda m, x: x * torch.rsqrt(x.relu().pow(2).mean(-1, keepdim=True) + 0.25) * m.weight,
        lambda m, x: _rms(m, x) + x,
    ],
)
def test_what_is_almost_a_norm_is_read_as_it_is(function) -> None:
    assert _found(function) == []
