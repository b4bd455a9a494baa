"""minimize, prune and fold on networks of Hugging Face transformers, built small from their configurations."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.layers import CompensatedRMSNorm
from tests.zoo import error_of, flat, mask, randomise

transformers: Any = pytest.importorskip("transformers")

WIDTH, HEADS, UNITS, WORDS = 32, 4, 40, 50


def _vit() -> nn.Module:
    sizes = {"hidden_size": WIDTH, "intermediate_size": UNITS, "num_attention_heads": HEADS}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8))


def _bert(heads: int = HEADS, **options: Any) -> nn.Module:
    sizes = {"hidden_size": 8 * heads, "intermediate_size": UNITS, "num_attention_heads": heads, "vocab_size": WORDS}
    config = transformers.BertConfig(**sizes, num_hidden_layers=2, max_position_embeddings=20, **options)
    return transformers.BertModel(config)


def _distilbert() -> nn.Module:
    sizes = {"dim": WIDTH, "hidden_dim": UNITS, "n_heads": HEADS, "vocab_size": WORDS}
    return transformers.DistilBertModel(transformers.DistilBertConfig(**sizes, n_layers=2, max_position_embeddings=20))


def _llama(**options: Any) -> nn.Module:
    """Two heads of queries read one of keys and values; rotary embedding, gated MLP, RMSNorm."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": UNITS, "num_attention_heads": HEADS, "vocab_size": WORDS}
    config = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, num_hidden_layers=2, max_position_embeddings=20, use_cache=False, **options
    )
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    sizes = {"n_embd": WIDTH, "n_inner": UNITS, "n_head": HEADS, "n_layer": 2, "n_positions": 20}
    config = transformers.GPT2Config(**sizes, vocab_size=WORDS, bos_token_id=0, eos_token_id=0, use_cache=False)
    return transformers.GPT2Model(config)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "vit": _vit,
    "bert": _bert,
    "bert_two_heads": lambda: _bert(2),
    "bert_by_hand": lambda: _bert(attn_implementation="eager"),
    "distilbert": _distilbert,
    "llama": _llama,
    "llama_by_hand": lambda: _llama(attn_implementation="eager"),
}

# The layers that write values, those that project what attention gives, and those that write the units of the MLP.
VALUES = ("self.value", "v_lin", "v_proj")
PROJECTIONS = ("attention.output.dense", "out_lin", "attention.o_proj", "self_attn.o_proj")
UNIT_WRITERS = ("intermediate.dense", "lin1", "fc1", "up_proj")


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = KINDS[name]().double()
    randomise(model)
    return model.eval()


def _inputs(name: str, count: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=generator)
    return torch.randint(0, WORDS, (count, 9 + seed), generator=generator)


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return flat({name: value for name, value in model(x).items() if isinstance(value, Tensor)})


def _layers(model: nn.Module, names: tuple[str, ...]) -> list[nn.Linear]:
    return [module for path, module in model.named_modules() if path.endswith(names) and isinstance(module, nn.Linear)]


def _exact(name: str, model: nn.Module, bound: float = 1e-10) -> lf.RewriteReport:
    dense = deepcopy(model)
    report = lf.minimize(model, _inputs(name))
    for seed in (0, 1):
        x = _inputs(name, 4, seed)
        assert error_of(_outputs(model, x), _outputs(dense, x)) <= bound
    assert report.parameters_after == lf.count_parameters(model)
    assert lf.minimize(model, _inputs(name)).changes == ()
    flat({k: v for k, v in model.train()(_inputs(name)).items() if isinstance(v, Tensor)}).square().mean().backward()
    return report


@pytest.mark.parametrize("pattern", ["rows", "columns"])
@pytest.mark.parametrize("name", KINDS)
def test_random_masks(name: str, pattern: str) -> None:
    model = _network(name)
    mask(model, pattern)
    assert _exact(name, model).factor > 1.05


@pytest.mark.parametrize("name", KINDS)
def test_heads_and_units_leave(name: str) -> None:
    """The last quarter of the heads (half of two), read by nobody, and every third unit."""
    model = _network(name)
    values, projections, units = (_layers(model, names) for names in (VALUES, PROJECTIONS, UNIT_WRITERS))
    assert len(values) == len(projections) == len(units) == 2
    grouped, width = "llama" in name, projections[0].in_features
    gone = 16 if grouped else 8  # one head of keys and values is read by two of queries
    with torch.no_grad():
        for projection, unit in zip(projections, units, strict=True):
            projection.weight[:, width - gone :] = 0
            unit.weight[::3] = 0
            if unit.bias is not None:
                unit.bias[::3] = -100.0  # zero behind the GELU
    _exact(name, model)
    assert [layer.in_features for layer in projections] == [width - gone] * 2
    assert [layer.out_features for layer in values] == [8 if grouped else width - gone] * 2
    assert [layer.out_features for layer in units] == [26] * 2
    rebuilt = KINDS[name]().double().eval()
    lf.rebuild(rebuilt, lf.describe(model))
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(_outputs(rebuilt, _inputs(name)), _outputs(model.eval(), _inputs(name)))


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
@pytest.mark.parametrize("name", KINDS)
def test_prune_and_fold(name: str, method: Callable[..., lf.RewriteReport]) -> None:
    """One attribute gives the size of a head of queries, keys and values: they shrink alike, if at all."""
    model = _network(name)
    units = _layers(model, UNIT_WRITERS)
    report = method(model, _inputs(name), keep=0.7, of="channels")
    assert [unit.out_features for unit in units] == [28, 28]
    assert report.factor > 1.05
    outputs = _outputs(model, _inputs(name, 5, 1))
    assert len(outputs) == 5 and bool(outputs.isfinite().all())


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_single_precision_is_read_like_double(method: Callable[..., lf.RewriteReport]) -> None:
    """To the exporter a cast to the type that a value has is that value, also for the sum behind a norm that casts."""
    found = [
        method(_llama().to(dtype), _inputs("llama"), keep=0.7, of="channels")
        for dtype in (torch.float32, torch.float64)
    ]
    assert found[0].changes == found[1].changes
    assert "model.embed_tokens.weight" in {change.tensor for change in found[0].changes}


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_skipped_layers_keep_their_widths(method: Callable[..., lf.RewriteReport]) -> None:
    model = _network("llama")
    report = method(model, _inputs("llama"), keep=0.7, of="channels", skip=["*self_attn*"])
    changed = {change.tensor.split(".")[-2] for change in report.changes}
    assert changed == {"gate_proj", "up_proj", "down_proj"}
    assert any("skip='*self_attn*' excludes" in kept.reason for kept in report.kept)
    for patterns in (["*self_attn*", "lm_haed"], ["*"]):
        with pytest.raises(ValueError, match=r"skip=\["):
            method(model, _inputs("llama"), keep=0.7, of="channels", skip=patterns)


ROTARY = ("llama", "llama_by_hand")
BESIDES_HEADS = ["model.embed_tokens", "*.up_proj"]


def _copy_heads(model: nn.Module, first: int, second: int) -> None:
    """The second of two heads of keys and values, and its queries, write what the first ones write."""
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                heads = projection.weight.unflatten(0, (2, -1))
                heads[second] = heads[first]


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_heads_that_are_alike_fold_exactly(name: str) -> None:
    """The channels of a rotated head leave together: the head is what is merged, with its queries, keys and values."""
    model = _network(name)
    _copy_heads(model, 0, 1)
    dense = deepcopy(model)
    report = lf.fold(model, _inputs(name), keep=0.5, of="channels", skip=BESIDES_HEADS)
    assert {tuple(change.after) for change in report.changes} == {(16, WIDTH), (8, WIDTH), (WIDTH, 16)}
    x = _inputs(name, 4, 1)
    assert error_of(_outputs(model, x), _outputs(dense, x)) <= 1e-12


@pytest.mark.parametrize(("multiple_of", "left"), [(8, 8), (16, 16)])
def test_heads_fill_up_to_multiples_of_channels(multiple_of: int, left: int) -> None:
    """A head of 8 channels is a multiple of 8 by itself."""
    model = _network("llama")
    dense = deepcopy(model)
    with torch.no_grad():
        for network in (model, dense):
            for layer in network.model.layers:
                layer.self_attn.o_proj.weight[:, 16:] = 0
    lf.minimize(model, _inputs("llama"), multiple_of=multiple_of)
    assert [layer.self_attn.v_proj.out_features for layer in model.model.layers] == [left] * 2
    assert error_of(_outputs(model, _inputs("llama")), _outputs(dense, _inputs("llama"))) <= 1e-10


@pytest.mark.parametrize("name", ROTARY)
def test_pruned_rotary_heads_are_as_if_nothing_read_them(name: str) -> None:
    model = _network(name)
    masked = deepcopy(model)
    lf.prune(model, _inputs(name), keep=0.5, of="channels", skip=BESIDES_HEADS)
    with torch.no_grad():
        for layer in masked.model.layers:
            attention = layer.self_attn
            groups = [p.weight.unflatten(0, (2, -1)).square().sum((1, 2)) for p in _projections(attention)]
            least = int(torch.stack(groups).sum(0).argmin())  # by L2 norm of all that writes the head
            attention.o_proj.weight.unflatten(1, (2, -1))[:, least] = 0
    assert [layer.self_attn.q_proj.out_features for layer in model.model.layers] == [16, 16]
    x = _inputs(name, 4, 1)
    assert error_of(_outputs(model, x), _outputs(masked, x)) <= 1e-12


def _projections(attention: Any) -> tuple[nn.Linear, ...]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def test_layers_that_repeat_their_size_in_an_attribute() -> None:
    """GPT-2 writes linear layers with weights of its own: their units leave, too."""
    torch.manual_seed(0)
    model = _gpt2().double().eval()
    with torch.no_grad():
        for block in model.h:
            block.mlp.c_fc.weight[:, ::4], block.mlp.c_proj.weight[1] = 0, 0
    _exact("gpt2", model)
    assert [(block.mlp.c_fc.nf, len(block.mlp.c_proj.weight)) for block in model.h] == [(29, 29)] * 2
    lf.prune(model, _inputs("gpt2"), keep=0.7, of="channels")
    assert [block.mlp.c_fc.nf for block in model.h] == [20, 20]


class _Norm(nn.Module):
    """LLaMA's RMSNorm in the type of its input; its own computes in single precision whatever that is."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize(("own", "tied", "bound"), [(True, True, 1e-6), (False, False, 1e-10)])
def test_stream_behind_rms_norms_loses_half_its_channels(own: bool, tied: bool, bound: float) -> None:
    """Nothing writes them, so they are zero; the norms still divide by the number that there were."""
    torch.manual_seed(0)
    model = _llama(tie_word_embeddings=tied).double().eval()
    with torch.no_grad():
        for path, module in list(model.named_modules()):
            if path.endswith(("o_proj", "down_proj")):
                module.weight[::2] = 0
            elif path.endswith("embed_tokens"):
                module.weight[:, ::2] = 0
            elif path.endswith("norm"):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                if not own:
                    model.set_submodule(path, _Norm(module.weight))
    _exact("llama", model, bound)
    assert model.lm_head.in_features == WIDTH // 2
    norms = [module for module in model.modules() if isinstance(module, CompensatedRMSNorm)]
    assert [(len(norm.weight), norm.removed) for norm in norms] == [(WIDTH // 2, WIDTH // 2)] * 5
    assert {norm.precision for norm in norms} == {"float32" if own else None}
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    rebuilt = _llama(tie_word_embeddings=tied).double().eval()
    lf.rebuild(rebuilt, lf.describe(model))
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(_outputs(rebuilt, _inputs("llama")), _outputs(model.eval(), _inputs("llama")))
