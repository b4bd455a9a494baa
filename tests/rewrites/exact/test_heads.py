"""minimize on attention: whole heads leave, with everything that counts them."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_fold as lf
from tests.zoo import Transformer, error_of, mask, randomise, run

HEADS, DIM = 4, 6
SIZE = HEADS * DIM


class Heads(nn.Module):
    """Self-attention with queries, keys and values apart; subclasses say how queries and keys are used."""

    kv_heads = HEADS

    def __init__(self, width: int):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.attn_dim = HEADS, self.kv_heads, DIM, SIZE
        self.q, self.proj = nn.Linear(width, SIZE), nn.Linear(SIZE, width)
        self.k, self.v = (nn.Linear(width, self.kv_heads * DIM) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).reshape(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = (layer(x).reshape(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2) for layer in (self.k, self.v))
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(b, n, self.attn_dim))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class ByHand(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout((q @ k.mT * DIM**-0.5).softmax(-1), 0.1, self.training) @ v


class Grouped(Heads):
    """Two heads of queries read one of keys and values."""

    kv_heads = HEADS // 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Repeated(Grouped):
    """The same by hand, as in LLaMA: heads of keys and values are repeated."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, _, n, d = k.shape
        k, v = (x[:, :, None].expand(b, self.num_kv_heads, 2, n, d).reshape(b, -1, n, d) for x in (k, v))
        return (q @ k.mT * DIM**-0.5).softmax(-1) @ v


class Interleaved(Grouped):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v)


class Rotary(Heads):
    """Queries and keys are rotated by the position of their token, in pairs of coordinates."""

    def __init__(self, width: int):
        super().__init__(width)
        angles = torch.arange(16)[:, None] * torch.tensor([1.0, 0.3, 0.1])
        self.register_buffer("cos", torch.cat([angles, angles], 1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], 1).sin())

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (x * self.cos + torch.cat([-x[..., DIM // 2 :], x[..., : DIM // 2]], -1) * self.sin for x in (q, k))
        return F.scaled_dot_product_attention(q, k, v)


class Normed(Heads):
    """Queries and keys are normalised within their heads."""

    def __init__(self, width: int):
        super().__init__(width)
        self.norms = nn.ModuleList([nn.LayerNorm(DIM), nn.RMSNorm(DIM)])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.norms[0](q), self.norms[1](k), v)


class Cosine(Heads):
    """Cosines in place of products, with a temperature for each head (Swin v2)."""

    def __init__(self, width: int):
        super().__init__(width)
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1) + 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT) * self.temperature).softmax(-1) @ v


class Biased(Heads):
    """A bias for each head from a table of relative positions, and a mask expanded over heads (Swin)."""

    def __init__(self, width: int):
        super().__init__(width)
        self.table = nn.Parameter(torch.randn(31, HEADS))
        self.register_buffer("index", torch.arange(16)[:, None] - torch.arange(16) + 15)
        self.register_buffer("far", -(torch.rand(1, 16, 16) > 0.7).double())

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1)
        far = self.far[:, None].expand(-1, self.num_heads, -1, -1).reshape(-1, self.num_heads, 16, 16)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None] + far)


class BiasedByHand(Biased):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1)
        return (q @ k.mT * DIM**-0.5 + bias + self.far).softmax(-1) @ v


class Talking(Heads):
    """Scores are mixed over heads before and after the softmax (CaiT)."""

    def __init__(self, width: int):
        super().__init__(width)
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.before((q @ k.mT * DIM**-0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        return self.after(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v


class Fused(nn.Module):
    """One projection for all three, by the attributes of the module, as in timm."""

    def __init__(self, width: int):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = HEADS, DIM, SIZE
        self.qkv, self.proj = nn.Linear(width, 3 * SIZE), nn.Linear(SIZE, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.attn_dim))


class Literal(nn.Module):
    """The code knows the size of a head; heads follow from the rest."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * SIZE), nn.Linear(SIZE, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, DIM)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


APART = [Heads, ByHand, Grouped, Repeated, Interleaved, Rotary, Normed, Cosine, Biased, BiasedByHand]
FUSED = [Fused, Literal]
KINDS = [*APART, Talking, *FUSED]


def _network(kind: type[nn.Module]) -> tuple[Transformer, Tensor]:
    torch.manual_seed(0)
    model = Transformer(kind).double()
    randomise(model)
    return model.eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)


def _exact(model: nn.Module, x: Tensor) -> lf.RewriteReport:
    dense = deepcopy(model)
    report = lf.minimize(model, x)
    for seed in range(2):
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-10
    assert lf.minimize(model, x).changes == ()
    model.train()(x).square().mean().backward()
    return report


def _some(options: list[str], but: type[nn.Module] | None = None) -> list:
    """Every kind with one of the ``options`` in turn in every run, with the others in the long one."""
    return [
        pytest.param(kind, option, marks=() if j == i % len(options) else pytest.mark.slow)
        for i, kind in enumerate(kind for kind in KINDS if kind is not but)
        for j, option in enumerate(options)
    ]


@pytest.mark.parametrize(
    ("kind", "how"), [case for case in _some(["values", "output"]) if case.values[0] is not Talking]
)
def test_head_that_adds_nothing_goes(kind: type[nn.Module], how: str) -> None:
    """Heads 2 and 3: their values are constants, or nobody reads them."""
    model, x = _network(kind)
    attention = model.attentions[0]
    with torch.no_grad():
        if how == "output":
            attention.proj.weight[:, 2 * DIM :] = 0
        elif kind in FUSED:
            attention.qkv.weight[-2 * DIM :] = 0
        else:
            attention.v.weight[-2 * DIM // (HEADS // attention.num_kv_heads) :] = 0
    _exact(model, x)
    assert attention.proj.in_features == SIZE // 2
    if kind in FUSED:
        assert attention.qkv.out_features == 3 * SIZE // 2
    else:
        sizes = [layer.out_features for layer in (attention.q, attention.k, attention.v)]
        assert sizes == [SIZE // 2, *[attention.num_kv_heads * DIM] * 2]
        assert attention.num_heads == HEADS // 2 and attention.num_kv_heads == type(attention).kv_heads // 2
    rebuilt = Transformer(kind).double().eval()
    lf.rebuild(rebuilt, lf.describe(model))
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(run(rebuilt, (x,)), run(model.eval(), (x,)))
    for name in ("table", "temperature"):
        assert not hasattr(attention, name) or HEADS // 2 in getattr(attention, name).shape


def test_talking_heads() -> None:
    """A head of values goes with the row of the last mix; queries and keys go with the column of the first."""
    model, x = _network(Talking)
    attention = model.attentions[1]
    with torch.no_grad():
        attention.proj.weight[:, DIM : 2 * DIM] = 0
        attention.before.weight[:, 2] = 0
    _exact(model, x)
    assert (attention.after.out_features, attention.v.out_features) == (HEADS - 1, SIZE - DIM)
    assert (attention.before.in_features, attention.q.out_features) == (HEADS - 1, SIZE - DIM)


@pytest.mark.parametrize("kind", [Rotary, Normed])
def test_single_dimensions_of_a_head_stay(kind: type[nn.Module]) -> None:
    model, x = _network(kind)
    with torch.no_grad():
        model.attentions[0].q.weight.view(HEADS, DIM, -1)[:, 1] = 0
        model.attentions[0].q.bias.view(HEADS, DIM)[:, 1] = 0
    _exact(model, x)
    assert model.attentions[0].q.out_features == SIZE


@pytest.mark.parametrize("kind", [Rotary, Normed, Literal])
def test_heads_that_are_alike_fold_exactly(kind: type[nn.Module]) -> None:
    """Where the channels of a head stay together, heads 0 and 1 become one, and 2 and 3: nothing is scaled by two."""
    model, x = _network(kind)
    with torch.no_grad():
        for attention in model.attentions:
            writers = [attention.qkv] if kind in FUSED else [attention.q, attention.k, attention.v]
            for tensor in [tensor for layer in writers for tensor in (layer.weight, layer.bias)]:
                heads = tensor.unflatten(0, (-1, HEADS, DIM))
                heads[:, 1::2] = heads[:, ::2]
            columns = attention.proj.weight.unflatten(1, (HEADS, DIM))
            columns[:, 1::2] = columns[:, ::2]
    dense = deepcopy(model)
    report = lf.fold(model, x, keep=0.5, of="channels", skip=["patches", "mlps.*.0"])
    assert [attention.proj.in_features for attention in model.attentions] == [SIZE // 2] * 2
    assert report.factor > 1.3
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize(("kind", "pattern"), _some(["rows", "columns", "both"]))
def test_random_masks(kind: type[nn.Module], pattern: str) -> None:
    model, x = _network(kind)
    mask(model, pattern)
    _exact(model, x)
