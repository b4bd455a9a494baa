from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_fold as lf
from lightning_fold.models import CausalTransformer, build_network

transformers: Any = pytest.importorskip("transformers", reason="needs the extra transformers")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_is_llama_of_transformers():
    network = build_network("lightning_fold.models.CausalTransformer", {**SIZES, "vocab_size": 50})
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, vocab_size=50))
    llama.load_state_dict(network.model.state_dict())
    tokens = torch.randint(50, (3, 7))
    with torch.no_grad():
        assert torch.equal(network(tokens), llama(tokens, use_cache=False).logits)


def test_other_architectures():
    network = CausalTransformer("gpt2", 50, n_embd=16, n_layer=1, num_attention_heads=2)
    assert isinstance(network.model, transformers.GPT2LMHeadModel)
    assert network(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 50)


@pytest.mark.parametrize(("name", "parameters"), [("60m", 58_073_600), ("130m", 134_105_856)])
def test_recipes_have_the_size_they_say(name, parameters):
    recipe = CONFIGS / f"text_llama_{name}.yaml"
    arguments = yaml.safe_load(recipe.read_text())["model"]["init_args"]
    with torch.device("meta"):
        network = CausalTransformer(vocab_size=arguments["vocab_size"], **arguments["network_args"])
    assert lf.count_parameters(network) == parameters
    assert f"{parameters / 1e6:.1f} million" in recipe.read_text()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model_type": "lama"}, ValueError, r"model_type='lama'.*Did you mean 'llama'"),
        ({"model_type": "vit"}, ValueError, r"no causal language model"),
        ({"hiden_size": 8}, TypeError, r"hiden_size=8.*LlamaConfig.*'hidden_size'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        CausalTransformer(**arguments)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("lightning_fold.extras.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"transformers: pip install 'lightning-fold\[transformers\]'"):
        CausalTransformer()
