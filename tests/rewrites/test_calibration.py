"""Calibrations: made once, when they are first asked for."""

import torch
from torch import nn

from lightning_fold.rewrites.calibration import LazyCalibration


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_is_made_once_of_the_network_as_it_is_at_the_first_call() -> None:
    model, x = _model(), torch.randn(2, 3, 4, 4)
    lazy = LazyCalibration(model, x, [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)])
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        made = lazy.get()
        model[0].weight.fill_(2.0)
    assert lazy.get() is made and made.real
    assert torch.equal(made.network[0].weight, torch.ones_like(model[0].weight))


def test_notes_say_what_was_left_out_once_it_was_made() -> None:
    sizes = (4, 4, 5)
    lazy = LazyCalibration(_model(), torch.randn(2, 3, 4, 4), [torch.randn(2, 3, size, size) for size in sizes])
    assert lazy.notes() == []
    lazy.get()
    (note,) = lazy.notes()
    assert note.startswith("1 of 3 batches were left out")


def test_without_batches_it_is_noise_of_its_seed() -> None:
    x = torch.randn(2, 3, 4, 4)
    first, again, other = (LazyCalibration(_model(), x, None, seed).get() for seed in (1, 1, 2))
    assert not first.real
    assert torch.equal(first.batches[0], again.batches[0]) and not torch.equal(first.batches[0], other.batches[0])
