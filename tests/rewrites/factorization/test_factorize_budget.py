"""factorize: ranks against a plain greedy loop, budgets, layers that stay, transformers, composition."""

import pytest
import timm
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.models import MLP, CifarResNet
from lightning_fold.rewrites.factorization.matrix_views import matrix_views
from tests.zoo import ZOO, build, error_of, run

LAYERS = {
    "linear": lambda: (nn.Linear(7, 5), (3, 4, 7)),
    "linear_no_bias": lambda: (nn.Linear(5, 7, bias=False), (2, 5)),
    "conv1d": lambda: (nn.Conv1d(4, 5, 3, stride=2, padding=1, padding_mode="circular"), (2, 4, 11)),
    "conv2d": lambda: (nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 9, 8)),
    "conv2d_same": lambda: (nn.Conv2d(4, 5, (2, 5), padding="same", padding_mode="reflect"), (2, 4, 9, 8)),
    "conv2d_point": lambda: (nn.Conv2d(4, 5, 1, stride=2), (2, 4, 5, 5)),
    "conv3d": lambda: (nn.Conv3d(3, 4, (1, 2, 3), padding=(0, 1, 1), bias=False), (2, 3, 4, 5, 5)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_full_rank_is_the_same_function(name):
    layer, size = LAYERS[name]()
    layer = layer.double()
    x = torch.randn(size, dtype=torch.float64)
    found = matrix_views("layer", layer)
    assert len(found) == (2 if name in ("conv2d", "conv2d_same") else 1)
    for shape in found:
        left, values, right = torch.linalg.svd(shape.matrix, full_matrices=False)
        pair = shape.pair(left * values, right)
        torch.testing.assert_close(pair(x), layer(x), rtol=1e-12, atol=1e-12)
        assert pair[1].bias is layer.bias


def greedy(weights, budget):
    """Ranks by the definition: one more rank at a time, where it brings the most energy per parameter."""
    spectra = [torch.linalg.svdvals(w).square() for w in weights]
    gains = [spectrum / spectrum.sum() / sum(w.shape) for spectrum, w in zip(spectra, weights, strict=True)]
    ranks = [1 for _ in weights]
    while True:
        used = sum(rank * sum(w.shape) for rank, w in zip(ranks, weights, strict=True))
        fitting = [i for i, w in enumerate(weights) if used + sum(w.shape) <= budget and ranks[i] < len(gains[i])]
        if not fitting:
            return ranks
        ranks[max(fitting, key=lambda i: float(gains[i][ranks[i]]))] += 1


@pytest.mark.parametrize("keep", [0.15, 0.2, 0.3])
def test_ranks_are_those_of_the_greedy_loop(keep):
    torch.manual_seed(0)
    model = MLP(40, [60, 50], 30).double()
    linears = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for linear, decay in zip(linears, (0.7, 0.9, 0.97), strict=True):
            left, _, right = torch.linalg.svd(linear.weight, full_matrices=False)
            linear.weight.copy_((left * decay ** torch.arange(len(right))) @ right)
    weights = [linear.weight.detach().clone() for linear in linears]
    total = lf.count_parameters(model)
    expected = greedy(weights, int(keep * total) - sum(len(linear.bias) for linear in linears))
    lf.factorize(model, torch.randn(2, 40, dtype=torch.float64), keep=keep)
    assert [pair[0].out_features for pair in model.layers if isinstance(pair, nn.Sequential)] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("unit", ["parameters", "flops"])
@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
def test_budget_is_met_closely(unit, keep):
    torch.manual_seed(0)
    model, x = CifarResNet(8), torch.randn(2, 3, 16, 16)
    report = lf.factorize(model, x, keep=keep, of=unit)
    before, after = getattr(report, f"{unit}_before"), getattr(report, f"{unit}_after")
    assert 0.98 * keep * before < after <= keep * before
    assert after == (lf.count_parameters(model) if unit == "parameters" else lf.count_flops(model, x))


def test_flops_count_every_call_of_a_layer():
    model = nn.Module()
    model.once, model.often = nn.Linear(12, 12), nn.Linear(12, 12)
    model.forward = lambda x: model.once(model.often(model.often(model.often(x).relu()).relu()).relu())
    lf.factorize(model, torch.randn(3, 12), keep=0.3, of="flops")
    assert model.often[0].out_features < model.once[0].out_features


def test_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"factorize\(keep=2\): expected a share in \(0, 1\]"):
        lf.factorize(build("mlp"), ZOO["mlp"].inputs(), keep=2, of="flops")


class Mixed(nn.Module):
    """Layers that can be factorized, and one of every kind that cannot."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 24)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.depthwise = nn.Conv1d(24, 24, 3, padding=1, groups=24)
        self.head = nn.Linear(24, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words):
        x = self.embedding(words)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.mlp(x)
        return self.head(self.depthwise(x.mT).mT)


def test_what_stays_is_said():
    torch.manual_seed(0)
    model, words = Mixed().eval(), torch.randint(20, (2, 7))
    before = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("mlp")}
    report = lf.factorize(model, words, keep=0.8)
    reasons = {kept.tensor: kept.reason for kept in report.kept}
    assert "another module reads its weight" in reasons["attention.out_proj"]
    assert "parameter of a MultiheadAttention" in reasons["attention.in_proj_weight"]
    assert "parameter of a Embedding" in reasons["embedding.weight"]
    assert "grouped" in reasons["depthwise"] and "shares its weight" in reasons["head"]
    assert isinstance(model.mlp[0], nn.Sequential) and isinstance(model.mlp[2], nn.Sequential)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_encoder_layer_of_torch_still_runs():
    """Its fast path reads the weights of its linear layers, so these have to stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 12))
    x = torch.randn(2, 5, 16)
    report = lf.factorize(model, x, keep=0.98)
    assert "another module reads its weight" in {k.tensor: k.reason for k in report.kept}["0.linear1"]
    assert isinstance(model[1], nn.Sequential)
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 5, 12)


def test_vision_transformer():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    report = lf.factorize(model, x, keep=0.5, batches=[torch.randn(4, 3, 32, 32)])
    assert 0.49 * report.parameters_before < report.parameters_after <= 0.5 * report.parameters_before
    for block in model.blocks:
        assert isinstance(block.attn.qkv, nn.Sequential) and isinstance(block.mlp.fc1, nn.Sequential)
    assert model(x).shape == (2, 10)


@pytest.mark.parametrize("first", [lf.prune, lf.fold], ids=["prune", "fold"])
def test_after_another_rewrite(first):
    """Weights of rank 2 stay of rank 2 when channels go or merge, and then factorize exactly."""
    torch.manual_seed(0)
    model, x = MLP(12, [20, 20], 10).double(), torch.randn(5, 12, dtype=torch.float64)
    with torch.no_grad():
        for layer in (layer for layer in model.layers if isinstance(layer, nn.Linear)):
            layer.weight.copy_(_randn(layer.out_features, 2) @ _randn(2, layer.in_features))
    first(model, x, keep=0.7, of="channels")
    expected = run(model, (x,))
    linears = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    wanted = sum(2 * sum(layer.weight.shape) + len(layer.bias) for layer in linears)
    report = lf.factorize(model, x, keep=wanted / lf.count_parameters(model))
    assert report.parameters_after == wanted
    assert error_of(run(model, (x,)), expected) < 1e-10


def test_weights_that_are_not_finite_are_refused():
    model, x = build("mlp"), ZOO["mlp"].inputs()
    next(model.parameters()).data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="holds NaN or infinity; expected finite weights"):
        lf.factorize(model, x, keep=0.5)


def _randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def correlated(count, size, seed=0):
    """Inputs with a few strong directions and many weak ones."""
    generator = torch.Generator().manual_seed(seed)
    channels = size[0]
    mix = torch.randn(channels, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    mix = mix * 0.6 ** torch.arange(channels)
    return torch.einsum("ij,nj...->ni...", mix, torch.randn(count, *size, dtype=torch.float64, generator=generator))


@pytest.mark.parametrize("size", [(16,), (6, 9, 9)], ids=["linear", "conv"])
def test_whitened_error_of_outputs_is_the_smallest_of_its_rank(size):
    """Against the least error that any matrix of this rank has on the same inputs (reduced-rank regression)."""

    def make():
        torch.manual_seed(0)
        layer = nn.Linear(16, 24) if len(size) == 1 else nn.Conv2d(6, 12, 3, padding=1)
        return nn.Sequential(layer).double()

    x = correlated(60, size)
    errors, target = {}, make()(x).detach()
    for name, batches in (("weights", None), ("data", [x[:25], (x[25:], None)])):
        model = make()
        lf.factorize(model, x[:2], keep=0.45, batches=batches)
        errors[name] = float((model(x) - target).detach().norm())
        rank = model[0][0].weight.shape[0]
    assert errors["data"] < 0.7 * errors["weights"]
    if len(size) == 3:
        return  # k x 1 then 1 x k may have been chosen, which no single matrix describes
    outputs = target - make()[0].bias.detach()
    assert errors["data"] == pytest.approx(float(torch.linalg.svdvals(outputs)[rank:].norm()), rel=1e-8)


def test_whitened_convolution_has_the_least_error():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, (3, 1), padding=(1, 0), bias=False)  # one way to read it as a matrix
    model, x = nn.Sequential(layer).double(), correlated(20, (6, 7, 7))
    rows = model(x).detach().movedim(1, 0).flatten(1)
    lf.factorize(model, x[:2], keep=0.6, batches=x.split(8))
    found = model(x).detach().movedim(1, 0).flatten(1)
    rank = model[0][0].out_channels
    assert 1 < rank < 8
    assert float((found - rows).norm()) == pytest.approx(float(torch.linalg.svdvals(rows)[rank:].norm()), rel=1e-8)


def test_whitening_in_training_mode_leaves_modes_and_hooks_as_they_were():
    model, x = build("conv_norm"), ZOO["conv_norm"].inputs()
    model.train()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    lf.factorize(model, x, keep=0.9, batches=[x[0]])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_batches_are_refused():
    model, x = build("mlp"), ZOO["mlp"].inputs()
    expected = run(model, x)
    with pytest.raises(ValueError, match=r"factorize\(batches=\.\.\.\): there is no batch"):
        lf.factorize(model, x, keep=0.9, batches=[])
    assert error_of(run(model, x), expected) == 0
