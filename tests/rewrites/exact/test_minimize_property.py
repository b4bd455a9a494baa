"""minimize on randomly composed networks."""

from copy import deepcopy

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lightning_fold as lf
from tests.zoo import (
    PATTERNS,
    Attention,
    ChannelNorm,
    Gated,
    Head,
    Residual,
    Separable,
    Shuffle,
    SqueezeExcitation,
    error_of,
    mask,
    randomise,
    restore_statistics,
    run,
)


class Concat(nn.Module):
    """The input beside a branch, brought back to its width."""

    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(width, 5, 3, padding=1), nn.ReLU())
        self.norm, self.back = nn.BatchNorm2d(width + 5), nn.Conv2d(width + 5, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.relu(self.norm(torch.cat([x, self.branch(x)], 1))))


class Twice(nn.Module):
    """One block applied twice, with an activation between."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(torch.nn.functional.gelu(self.block(x)))


class Halves(nn.Module):
    """One half of the channels goes through a layer, the other does not (Res2Net, ShuffleNet)."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.BatchNorm2d(width // 2))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return torch.cat([left, torch.relu(self.layer(right))], 1)


class Tokens(nn.Module):
    """Attention over the positions of an image in a residual stream, behind a norm over channels."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.norm, self.attention = ChannelNorm(width), Attention(kind, width, heads=3, head_dim=4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


def _grouped(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=2, bias=False), Shuffle(2), nn.BatchNorm2d(width), nn.ReLU()
    )


WIDTH = 8
BLOCKS = {
    "plain": lambda: nn.Sequential(nn.Conv2d(WIDTH, 7, 3, padding=1), nn.SiLU(), nn.Conv2d(7, WIDTH, 1)),
    "norm_free": lambda: nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, bias=False), nn.ReLU()),
    "residual": lambda: Residual(WIDTH, WIDTH),
    "concat": lambda: Concat(WIDTH),
    "separable": lambda: Separable(WIDTH, 10),
    "multiplier": lambda: Separable(WIDTH, 5, multiplier=2),
    "depthwise": lambda: nn.Conv2d(WIDTH, WIDTH, 3, groups=WIDTH),
    "grouped": lambda: _grouped(WIDTH),
    "excited": lambda: SqueezeExcitation(WIDTH, 3),
    "gated": lambda: Gated(WIDTH, WIDTH),
    "halves": lambda: Halves(WIDTH),
    "normed": lambda: nn.Sequential(ChannelNorm(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)),
    **{kind: lambda kind=kind: Tokens(kind, WIDTH) for kind in ("fused", "chunked", "apart", "by_hand", "single")},
    "shared_attention": lambda: Twice(Tokens("apart", WIDTH)),
    "pool": lambda: nn.AvgPool2d(2, 1, padding=1),
    "shared_conv": lambda: Twice(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
    "shared_residual": lambda: Twice(Residual(WIDTH, WIDTH)),
    "shared_grouped": lambda: Twice(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2)),
}


@settings(
    derandomize=True, max_examples=24, deadline=None, database=None, report_multiple_bugs=False, phases=[Phase.generate]
)
@given(
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4),
    st.sampled_from(PATTERNS),
    st.integers(0, 2**16),
)
def test_random_networks(blocks: list[str], pattern: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), *(BLOCKS[name]() for name in blocks), Head(WIDTH)).double()
    randomise(model)
    mask(model, pattern)
    restore_statistics(model, (torch.randn(8, 3, 12, 12, dtype=torch.float64),))
    model.eval()
    dense, x = deepcopy(model), torch.randn(3, 3, 12, 12, dtype=torch.float64)
    report = lf.minimize(model, x)
    assert report.parameters_after <= report.parameters_before
    for size in (12, 17):
        x = torch.randn(4, 3, size, size, dtype=torch.float64)
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    assert lf.minimize(model, x).changes == ()
