"""Norms: of everything that writes a channel."""

import numpy as np
import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.rewrites.reduction.importances.norm import Norm
from tests.zoo import ZOO, build


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "residual", "transposed"])
def test_against_numpy_over_the_weights_that_write_a_channel(name: str, order: int) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    for group in lf.channel_groups(model, inputs):
        if group.pinned is not None:
            continue
        written = [(m, model.state_dict()[m.tensor].numpy()) for m in group.members if not m.reads]
        rows = [np.moveaxis(w, m.dim, 0)[m.indices[:, 0]].reshape(group.size, -1) for m, w in written if w.ndim > 1]
        expected = np.linalg.norm(np.concatenate(rows, 1), ord=order, axis=1)
        np.testing.assert_allclose(Norm(order).score(model, group).numpy(), expected, rtol=1e-12)


def test_norm_of_half_precision_is_finite_where_its_square_is_not() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).half()
    nn.init.constant_(model[0].weight, 1000.0)
    (group,) = (g for g in lf.channel_groups(model, torch.randn(2, 4).half()) if g.pinned is None)
    assert Norm().score(model, group).tolist() == [2000.0] * 3


def test_norm_scales_with_the_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    (group,) = (g for g in lf.channel_groups(model, torch.randn(2, 4).double()) if g.pinned is None)
    before = Norm().score(model, group)
    with torch.no_grad():
        model[0].weight[1] *= -3
    torch.testing.assert_close(Norm().score(model, group), before * torch.tensor([1.0, 3.0, 1.0]))
