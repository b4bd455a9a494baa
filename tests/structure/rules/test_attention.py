"""Products of two values: queries leave with keys, values with the columns that read them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.structure.reading import Apply, channels, constant, known, pinned

TOKENS = torch.randn(2, 4, 3, dtype=torch.float64)


def _by_hand(m, x):
    return m.out((m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1) @ m.v(x))


def _fused(m, x):
    return m.out(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), scale=0.5))


def _single(forward) -> nn.Module:
    parts = {name: nn.Linear(3, 2, bias=False) for name in ("q", "k", "v")}
    return Apply(forward, **parts, out=nn.Linear(2, 3)).double()


@pytest.mark.parametrize("forward", [_by_hand, _fused])
def test_single_head(forward) -> None:
    expected = [{f"q.weight[{i}]", f"k.weight[{i}]"} for i in range(2)]
    expected += [{f"v.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]
    found = channels(_single(forward), TOKENS)
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def test_mask_over_tokens_is_fixed() -> None:
    def forward(m, x):
        return m.out(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), m.mask, scale=0.5))

    model = _single(forward)
    model.mask = nn.Parameter(torch.zeros(4, 4).double())
    assert {("mask", 0), ("mask", 1)} <= pinned(model, TOKENS) and len(channels(model, TOKENS)) == 4


def test_matrix_of_the_network_is_a_layer() -> None:
    parts = {
        "a": nn.Linear(3, 2, bias=False),
        "b": nn.Parameter(torch.randn(2, 2)),
        "c": nn.Parameter(torch.randn(2, 3)),
    }
    model = Apply(lambda m, x: torch.relu(m.a(x) @ m.b) @ m.c, **parts).double()
    expected = [{f"a.weight[{i}]", f"b[{i}]"} for i in range(2)] + [{f"b[:, {i}]", f"c[{i}]"} for i in range(2)]
    assert channels(model, TOKENS) == expected


def _values(x: torch.Tensor) -> torch.Tensor:
    """A channel that is 3 for all tokens, one that differs from token to token, one of the input."""
    rising = torch.arange(4.0, dtype=x.dtype)[None, :, None].expand(2, 4, 1)
    return torch.cat([constant(x[..., :1], 3), rising, x[..., :1]], -1)


@pytest.mark.parametrize(
    "attend",
    [
        lambda x: F.scaled_dot_product_attention(x, x, _values(x)),
        lambda x: F.scaled_dot_product_attention(x, x, _values(x), torch.zeros(4, 4, dtype=x.dtype)),
        lambda x: (x @ x.transpose(1, 2)).softmax(-1) @ _values(x),
    ],
)
def test_mean_of_equal_tokens_is_known(attend) -> None:
    found = known(Apply(lambda m, x: attend(x)), TOKENS)
    assert torch.equal(found[..., 0], torch.full((2, 4), 3.0).double()) and found[..., 1:].isnan().all()


@pytest.mark.parametrize(
    "attend",
    [
        lambda x: F.scaled_dot_product_attention(x, x, _values(x), torch.ones(4, 4, dtype=torch.bool)),
        lambda x: (x @ x.transpose(1, 2)) @ _values(x),
    ],
)
def test_weights_that_need_not_sum_to_one_make_nothing_known(attend) -> None:
    assert known(Apply(lambda m, x: attend(x)), TOKENS).isnan().all()
