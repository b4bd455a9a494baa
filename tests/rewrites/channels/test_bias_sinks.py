"""Bias sinks: what is added to them is added to the output."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.rewrites.channels.bias_sinks import BiasSink, find_bias_sink
from lightning_fold.structure.groups import read_structure
from lightning_fold.surgery.editor import NetworkEditor


def _first(model: nn.Module, x: Tensor) -> BiasSink | None:
    structure = read_structure(model, x)
    return find_bias_sink(structure, structure.labels.contractions[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_constant_in_the_sink_is_the_constant_behind_the_layer(bias: bool, norm: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4) if norm else nn.Tanh(), nn.Linear(4, 2))
    model, x = model.double().eval(), torch.randn(5, 3, dtype=torch.float64)
    sink, constant = _first(model, x), torch.randn(4, dtype=torch.float64)
    if not bias and not norm:
        assert sink is None
        return
    assert sink is not None
    expected = model[1:](model[0](x) + constant)
    editor = NetworkEditor(deepcopy(model))
    editor.add(sink.tensor, sink.sign * constant)
    assert sink.tensor == ("0.bias" if bias else "1.running_mean")
    torch.testing.assert_close(editor.model(x), expected, rtol=1e-12, atol=1e-12)


def test_bias_that_two_layers_share_takes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    assert _first(model, torch.randn(2, 3)) == BiasSink("0.bias", 1)
    model[2].bias = model[0].bias
    assert _first(model, torch.randn(2, 3)) is None


def test_norm_without_running_statistics_takes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    assert _first(model.eval(), torch.randn(5, 3)) is None
