"""Rescaling: other numbers, the same function, in place and beside the network."""

from copy import deepcopy

import pytest
import torch

from lightning_fold.inputs import call
from lightning_fold.rewrites.channels.homogeneity import homogeneous
from lightning_fold.rewrites.channels.producers import find_producers
from lightning_fold.rewrites.channels.rescaling import rescaling, widen
from lightning_fold.structure.groups import read_structure, reading_axes
from lightning_fold.surgery.editor import NetworkEditor
from lightning_fold.surgery.overlay import Overlay
from tests.zoo import ZOO, build, error_of, flat, run


@pytest.mark.parametrize("name", ["residual", "conv_no_bias", "two_outputs"])
def test_function_stays_where_homogeneous_channels_are_scaled(name: str) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    structure = read_structure(model, inputs)
    free = homogeneous(structure)
    free[list(structure.pinned)] = False
    assert bool(free.any())
    torch.manual_seed(0)
    scales = torch.where(free, torch.rand(structure.count, dtype=torch.float64) + 0.5, 1.0)
    overlay, changed = Overlay(model), NetworkEditor(deepcopy(model))
    for editor in (overlay, changed):
        rescaling(editor, structure, free, scales, reading_axes(structure)).apply(editor)
    weights = [producer.weight for producer in find_producers(structure)]
    assert any(not torch.equal(changed.tensor(weight), model.get_parameter(weight)) for weight in weights)
    expected = run(model, inputs)
    assert error_of(run(changed.model, inputs), expected) <= 1e-12
    with torch.no_grad():
        assert error_of(flat(call(model, inputs, overlay.changed)), expected) <= 1e-12


def test_function_stays_where_batch_norms_are_widened() -> None:
    model, inputs = build("residual"), ZOO["residual"].inputs()
    producer = next(each for each in find_producers(read_structure(model, inputs)) if each.norm is not None)
    assert producer.norm is not None
    gamma, _, _, variance = producer.norm
    editor = NetworkEditor(deepcopy(model))
    factors = torch.linspace(1.0, 3.0, len(model.get_parameter(gamma)), dtype=torch.float64)
    widen(editor, producer, factors)
    found = (editor.tensor(variance) + producer.eps) / (model.get_buffer(variance) + producer.eps)
    torch.testing.assert_close(found, factors.square(), rtol=1e-12, atol=0)
    assert error_of(run(editor.model, inputs), run(model, inputs)) <= 1e-12
