"""How fast singular values fall, against spectra that are known."""

import math

import pytest
import torch

from lightning_fold.regularizers import spectrum_decay


def test_spectrum_decay_of_known_spectra():
    flat = torch.eye(8)
    assert spectrum_decay({"a": flat}) == pytest.approx(0.25)
    low = torch.outer(torch.arange(8.0), torch.ones(12))
    assert spectrum_decay({"a": low}) == pytest.approx(1)
    assert spectrum_decay({"a": flat, "b": low.reshape(8, 3, 2, 2)}) == pytest.approx(0.625)
    for size in (1, 5, 10):
        assert spectrum_decay({"a": torch.eye(size)}) == pytest.approx(math.ceil(size / 4) / size)


def test_spectrum_decay_of_weights_without_a_finite_energy():
    for value in (float("nan"), float("inf"), 1e30):
        assert math.isnan(spectrum_decay({"a": torch.eye(4), "b": torch.full((4, 4), value)}))
    assert math.isnan(spectrum_decay({}))
