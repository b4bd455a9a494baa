"""minimize on attention: which dimensions of a head go, and that its scale stays."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from tests.zoo import ZOO, Attention, Multihead, Transformer, build, error_of, mask, run

FUSED = ("fused", "chunked", "by_hand")


def _slices(attention: Attention) -> dict[str, tuple[nn.Linear, slice]]:
    """The layer and the rows that write queries, keys and values."""
    size = attention.attn_dim
    if attention.kind == "apart":
        return {name: (getattr(attention, name), slice(0, size)) for name in "qkv"}
    return {name: (attention.qkv, slice(i * size, (i + 1) * size)) for i, name in enumerate("qkv")}


def _silence(attention: Attention, name: str, dims: list[int], *, bias: float | None = None) -> None:
    """Dimensions ``dims`` of every head become constants."""
    layer, rows = _slices(attention)[name]
    with torch.no_grad():
        layer.weight[rows].view(attention.heads, attention.head_dim, -1)[:, dims] = 0
        if bias is not None:
            layer.bias[rows].view(attention.heads, attention.head_dim)[:, dims] = bias


def _checked(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    dense = deepcopy(model)
    lf.minimize(model, inputs)
    for seed in range(2):
        x = ZOO["attention_fused"].inputs(4, seed=seed, grow=2 * seed)
        assert error_of(run(model, x), run(dense, x)) <= 1e-12
    assert lf.minimize(model, inputs).changes == ()


@pytest.mark.parametrize("kind", [*FUSED, "apart"])
def test_constant_keys_and_values_go(kind: str) -> None:
    """Two of six dimensions: a constant key moves all scores of a row alike, a constant value moves into the bias."""
    model, inputs = build(f"attention_{kind}"), ZOO["attention_fused"].inputs()
    attention = model.attentions[0]
    with torch.no_grad():
        model.attentions[0].proj.weight *= 5  # so that what attention does is seen
    _silence(attention, "k", [1, 4])
    _silence(attention, "v", [0, 3])
    _checked(model, inputs)
    assert attention.proj.in_features == 8
    assert _slices(attention)["q"][0].out_features == (8 if kind == "apart" else 24)


def test_constant_query_stays_unless_it_is_zero() -> None:
    for bias, left in ((0.7, 12), (0.0, 8)):
        model, inputs = build("attention_apart"), ZOO["attention_fused"].inputs()
        _silence(model.attentions[0], "q", [1, 4], bias=bias)
        _checked(model, inputs)
        assert model.attentions[0].k.out_features == left


def test_heads_keep_equally_many() -> None:
    """Three dimensions of the first head and one of the second: one of each goes."""
    model, inputs = build("attention_apart"), ZOO["attention_fused"].inputs()
    with torch.no_grad():
        model.attentions[1].v.weight[[0, 2, 5, 9]] = 0
    dense = deepcopy(model)
    report = lf.minimize(model, inputs)
    assert model.attentions[1].v.out_features == 10 and model.attentions[1].q.out_features == 12
    assert any("heads of equal size" in kept.reason for kept in report.kept)
    assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12


def test_sizes_in_the_code_are_reported() -> None:
    model, inputs = build("attention_fixed", "rows"), ZOO["attention_fused"].inputs()
    report = lf.minimize(model, inputs)
    assert any("of a size that the code fixes" in kept.reason for kept in report.kept)
    assert all(attention.qkv.out_features == 36 for attention in model.attentions)


class _Named(Attention):
    """Has the attributes and does not ask them."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_attributes_that_the_code_does_not_ask_are_found_out() -> None:
    torch.manual_seed(0)
    model, inputs = Transformer(lambda width: _Named("fused", width)).double(), ZOO["attention_fused"].inputs()
    mask(model, "rows")
    _checked(model.eval(), inputs)
    assert all(a.qkv.out_features == 36 and a.head_dim == 6 for a in model.attentions)
    assert model.mlps[0][0].out_features < 12


def test_encoder_layer_of_torch_loses_mlp_units_only() -> None:
    """nn.MultiheadAttention has one width for everything, and the reason says so."""
    model, inputs = build("encoder", "rows"), ZOO["encoder"].inputs()
    dense = deepcopy(model)
    lf.minimize(model, inputs)
    assert all(layer.linear1.out_features < 14 for layer in model.encoder.layers)
    assert all(layer.self_attn.in_proj_weight.shape == (27, 9) for layer in model.encoder.layers)
    pinned = [group.pinned or "" for group in lf.channel_groups(model, inputs)]
    assert sum("has the width of its nn.MultiheadAttention" in reason for reason in pinned) >= 2
    assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12


def test_head_that_has_to_stay_in_multihead_attention_is_reported() -> None:
    torch.manual_seed(0)
    model, inputs = Transformer(Multihead).double().eval(), ZOO["multihead"].inputs()
    with torch.no_grad():
        model.attentions[0].attention.in_proj_weight[-4:] = 0  # the values of the second of two heads
    dense = deepcopy(model)
    (kept,) = lf.minimize(model, inputs).kept
    assert kept.tensor == "attentions.0.attention.in_proj_weight"
    assert "has the width of its nn.MultiheadAttention" in kept.reason
    assert kept.channels == 8  # four dimensions of values, and four of queries with their keys
    assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12
