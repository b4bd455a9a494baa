"""prune and fold on known architectures, with no configuration: they meet the budget, run, train and come back."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import lightning_fold as lf
from benchmarks.networks import outputs, training_step

# A few in every run; all of them, of real width, take minutes.
FAST = ("test_resnet:32", "test_vit:32")
NETWORKS = [
    *("test_resnet:32", "test_vit:32", "test_efficientnet:32", "test_convnext:32", "test_byobnet:32"),
    *("torchvision/resnet18:32", "resnetv2_18:32", "torchvision/vgg11_bn:32", "torchvision/densenet121:32"),
    *("torchvision/mobilenet_v2:32", "efficientnet_b0:32", "convnext_atto:32", "regnetx_002:32"),
    *("vit_tiny_patch16_224:32", "swin_tiny_patch4_window7_224:64", "mixer_s32_224:64", "llama:16"),
]
METHODS: dict[str, Any] = {
    "prune": lf.prune,
    "fold": lf.fold,
    "prune_least_squares": lambda *given, **share: lf.prune(*given, **share, compensate="least-squares"),
}
WORDS = 32000


def create(name: str, size: int) -> nn.Module:
    """The network with random weights, in evaluation mode."""
    torch.manual_seed(0)
    if name == "llama":  # 60 million parameters
        transformers: Any = pytest.importorskip("transformers")
        sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_hidden_layers": 8}
        config = transformers.LlamaConfig(**sizes, vocab_size=WORDS, use_cache=False)
        return transformers.LlamaForCausalLM(config).eval()
    if name.startswith("torchvision/"):
        return torchvision.models.get_model(name.removeprefix("torchvision/"), weights=None).eval()
    sized = any(key in name for key in ("vit", "mixer", "swin"))
    options = {"img_size": size} if sized else {}
    return timm.create_model(name, **options, **({"window_size": 2} if "swin" in name else {})).eval()


def draw(name: str, size: int, count: int) -> Tensor:
    """Images, or texts of ``size`` words."""
    return torch.randint(0, WORDS, (count, size)) if name == "llama" else torch.randn(count, 3, size, size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("network", "share"),
    [
        pytest.param(name, share, marks=() if name in FAST and share == 0.5 else pytest.mark.slow)
        for name in NETWORKS
        for share in (0.7, 0.5)
    ],
)
def test_meets_the_budget_runs_trains_and_comes_back(network: str, method: str, share: float) -> None:
    name, _, size = network.partition(":")
    model, size = create(name, int(size)), int(size)
    report = METHODS[method](model, draw(name, size, 2), keep=share)
    assert report.parameters_after == lf.count_parameters(model)
    assert report.parameters_after / report.parameters_before == pytest.approx(share, rel=0.02)
    others = draw(name, size, 3)
    found = outputs(model, others)
    assert all(bool(value.isfinite().all()) for value in found)
    assert training_step(model, others)
    fresh = create(name, size)
    lf.rebuild(fresh, lf.describe(model))
    fresh.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(fresh, others), found, strict=True))
