"""Layers that get their input by name: every rewrite that looks at it does as where it comes in order."""

from functools import partial

import pytest
import torch
from torch import nn

import lightning_fold as lf


class Convolutional(nn.Module):
    def __init__(self, by_name):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.hidden, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        self.by_name = by_name

    def forward(self, x):
        x = self._run(self.second, self._run(self.first, x).relu()).relu().mean((2, 3))
        return self._run(self.last, self._run(self.hidden, x).relu())

    def _run(self, layer, x):
        return layer(input=x) if self.by_name else layer(x)


REWRITES = {
    "factorize_parameters": partial(lf.factorize, keep=0.6),
    "factorize_flops": partial(lf.factorize, keep=0.6, of="flops"),
    "prune_least_squares": partial(lf.prune, keep=0.5, of="channels", compensate="least-squares"),
    "prune_activation": partial(lf.prune, keep=0.5, importance="activation"),
    "fold_reconstruction": partial(lf.fold, keep=0.5, of="flops", compensate="least-squares"),
}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES.keys())
def test_input_by_name(rewrite):
    x = torch.randn(12, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    by_name, in_order = Convolutional(True).double(), Convolutional(False).double()
    reports = [rewrite(model, x[:2], batches=[x[:8], x[8:]]) for model in (by_name, in_order)]
    assert reports[0].changes == reports[1].changes != ()
    torch.testing.assert_close(by_name(x), in_order(x), rtol=1e-12, atol=1e-12)
