"""Over positions: channels pass, what is summed stays, constants stay known for images of any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.structure.reading import Apply, channels, constant, known, pinned

IMAGE = torch.randn(2, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.amax(3, keepdim=True),
        lambda x: x.softmax(2),
    ],
)
def test_channels_pass(pool) -> None:
    parts = {"a": nn.Conv2d(3, 2, 1, bias=False), "out": nn.Conv2d(2, 3, 1)}
    model = Apply(lambda m, x: m.out(pool(m.a(x))), **parts).double()
    assert channels(model, IMAGE) == [{f"a.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]


def test_reduction_that_drops_dimensions_moves_the_channels() -> None:
    model = Apply(
        lambda m, x: m.out(m.a(x).sum((-1, 2))), a=nn.Conv2d(3, 2, 1, bias=False), out=nn.Linear(2, 3)
    ).double()
    assert channels(model, IMAGE) == [{f"a.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]


@pytest.mark.parametrize(
    "over", [lambda x: x.softmax(1), lambda x: x - x.mean(1, keepdim=True), lambda x: x.std(1, True)]
)
def test_channels_that_are_taken_together_stay(over) -> None:
    model = Apply(lambda m, x: over(m.a(x)).mean(), a=nn.Conv2d(3, 2, 1)).double()
    assert channels(model, IMAGE) == [] and ("a.weight", 0) in pinned(model, IMAGE)


CONSTANTS = torch.tensor([5.0, 0.0, torch.nan], dtype=torch.float64)


def _beside(x: torch.Tensor) -> torch.Tensor:
    """Channels that are 5, 0 and the input's own."""
    return torch.cat([constant(x[:, :1], 5.0), constant(x[:, :1], 0.0), x[:, :1]], 1)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (lambda x: F.max_pool2d(x, 2), CONSTANTS),
        (lambda x: F.avg_pool2d(x, 3), CONSTANTS),
        (lambda x: F.avg_pool2d(x, 3, padding=1), torch.tensor([torch.nan, 0, torch.nan])),
        (lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False), CONSTANTS),
        (lambda x: x.mean((2, 3)), CONSTANTS),
        (lambda x: x.amax(3), CONSTANTS),
        (lambda x: x.sum((2, 3)), torch.tensor([torch.nan, 0, torch.nan])),
        (lambda x: x.norm(dim=(2, 3)), torch.tensor([torch.nan, 0, torch.nan])),
    ],
)
def test_constants_are_known_where_no_size_is_in_them(pool, expected: torch.Tensor) -> None:
    found = known(Apply(lambda m, x: pool(_beside(x))), IMAGE)[0].reshape(3, -1)
    assert torch.equal(found.isnan().any(1), found.isnan().all(1))
    torch.testing.assert_close(found[:, 0], expected.double(), rtol=1e-12, atol=0, equal_nan=True)
