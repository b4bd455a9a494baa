"""factorize: layers under several names, layers that other code reads or uses otherwise, two calls, complex weights."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf


def _randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


class SharedModule(nn.Module):
    """One linear layer under three names, of which ``called`` are called."""

    def __init__(self, called):
        super().__init__()
        self.first, self.last, self.called = nn.Linear(8, 32), nn.Linear(32, 4), called
        self.middle = nn.ModuleList([nn.Linear(32, 32)] * 2)
        self.other = self.middle[0]

    def forward(self, x):
        x = self.first(x)
        for name in self.called:
            x = self.get_submodule(name)(x).relu()
        return self.last(x)


@pytest.mark.parametrize("called", [["middle.0", "middle.1", "other"], ["middle.1"], ["other"]], ids="+".join)
def test_module_under_several_names_is_factorized_once(called):
    torch.manual_seed(0)
    model, x = SharedModule(called).double(), torch.randn(4, 8, dtype=torch.float64)
    with torch.no_grad():
        model.other.weight.copy_(_randn(32, 3) @ _randn(3, 32) / 16)
    expected, optimizer = model(x), torch.optim.Adam(model.parameters())
    wanted = 3 * (32 + 32) + 32 + 8 * 32 + 32 + 32 * 4 + 4
    keep = wanted / lf.count_parameters(model)
    report = lf.factorize(model, x, keep=keep, optimizers=[optimizer])
    assert report.parameters_after == lf.count_parameters(model) == wanted and not report.notes
    assert model.middle[0] is model.middle[1] is model.other and isinstance(model.other, nn.Sequential)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    other = SharedModule(called).double()
    lf.rebuild(other, lf.describe(model))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), expected, rtol=1e-10, atol=1e-10)


def test_missed_budget_is_said():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(2, 6)
    report = lf.factorize(model, x, keep=0.95)
    share = f"{lf.count_parameters(model) / 84:.1%}"
    assert report.notes == (f"{share} of the parameters are left, the closest size found for the requested 95.0%",)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    flops = lf.count_flops(model, x)
    report = lf.factorize(model, x, keep=0.9, of="flops")
    assert report.notes[0].startswith(f"{lf.count_flops(model, x) / flops:.1%} of the FLOPs are left")


class Read(nn.Module):
    """A layer that is called, and of which other code reads ``attribute``."""

    def __init__(self, attribute):
        super().__init__()
        self.encode, self.hidden, self.last = nn.Linear(24, 16), nn.Linear(16, 16), nn.Linear(24, 24)
        self.attribute = attribute

    def forward(self, x):
        x = self.hidden(self.encode(x).relu())
        if self.attribute == "weight":
            return self.last(x @ self.encode.weight)
        return self.last(x.new_zeros(len(x), self.encode.in_features))


@pytest.mark.parametrize("attribute", ["weight", "in_features"])
def test_layer_that_other_code_reads_stays(attribute):
    torch.manual_seed(0)
    model, x = Read(attribute), torch.randn(4, 24)
    report = lf.factorize(model, x, keep=0.8)
    reasons = {kept.tensor: kept.reason for kept in report.kept}
    assert reasons["encode"] == f"cannot be replaced by two layers: another module reads its {attribute}"
    kinds = {name: type(layer) for name, layer in model.named_children()}
    assert kinds["encode"] is nn.Linear and kinds["last"] is nn.Sequential
    assert model(x).shape == (4, 24)


def test_layer_that_nobody_calls_stays():
    model = nn.Sequential(nn.Linear(12, 12))
    model[0].auxiliary = nn.Linear(12, 12)
    with pytest.raises(ValueError, match=r"Left alone: 0\.auxiliary: is not called on the example inputs\."):
        lf.factorize(model, torch.randn(2, 12), keep=0.1)


@pytest.mark.parametrize("layer", ["linear", "conv", "separable"])
@pytest.mark.parametrize("batches", [False, True], ids=["weights", "data"])
def test_complex_weights_of_low_rank_keep_their_function(layer, batches):
    torch.manual_seed(0)
    kind = torch.complex128
    if layer == "linear":
        model, x = nn.Sequential(nn.Linear(20, 24, dtype=kind)), _randn(40, 20, dtype=kind)
        weight = _randn(24, 3, dtype=kind) @ _randn(3, 20, dtype=kind)
    else:
        model, x = nn.Sequential(nn.Conv2d(8, 12, 3, dtype=kind)), _randn(6, 8, 7, 6, dtype=kind)
        one, other = ("or", "rchw") if layer == "conv" else ("orw", "rch")
        sizes = {"o": 12, "r": 3, "c": 8, "h": 3, "w": 3}
        factors = [_randn(*(sizes[axis] for axis in axes), dtype=kind) for axes in (one, other)]
        weight = torch.einsum(f"{one},{other}->ochw", *factors)
    model[0].weight.data.copy_(weight)
    model.append(Magnitude())
    expected = model(x)
    lf.factorize(model, x[:2], keep=0.6, batches=[x] if batches else None)
    assert model[0][0].weight.shape[0] < 12
    torch.testing.assert_close(model(x), expected, rtol=1e-7, atol=1e-7)


class Magnitude(nn.Module):
    def forward(self, x):
        return x.abs()


def test_encoder_layers_of_torch_are_named_where_the_budget_cannot_be_reached():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    model = nn.Sequential(nn.Linear(12, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    expected = r"Left alone: 1\.layers\.0\.self_attn\.out_proj, 1\.layers\.0\.linear1, 1\.layers\.0\.linear2, \.\.\.: "
    expected += "cannot be replaced by two layers: another module reads its weight;"
    with pytest.raises(ValueError, match=expected):
        lf.factorize(model, torch.randn(2, 5, 12), keep=0.5)


def test_encoder_layers_of_torch_without_their_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(2, 5, 16)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        lf.factorize(model, x, keep=0.7)
        assert isinstance(model.layers[0].linear1, nn.Sequential)
        assert model(x).shape == model.train()(x).shape
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_full_rank_with_fewer_operations_is_the_last_rank():
    """Under so much padding that k x 1 then 1 x k at full rank costs less than the convolution."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(16, 2, 3, padding=(0, 20))).double(), _randn(2, 16, 6, 4)
    expected, flops = model(x), lf.count_flops(model, x)
    report = lf.factorize(model, x, keep=0.9, of="flops")
    assert model[0][0].out_channels == min(2 * 3, 16 * 3)
    assert report.notes == (
        f"{lf.count_flops(model, x) / flops:.1%} of the FLOPs are left, the closest size found for the requested 90.0%",
    )
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


class Otherwise(nn.Module):
    """Layers of rank 4 that are called from a plain list, or whose type is asked for; ``plain`` is just called."""

    def __init__(self, how):
        super().__init__()
        self.how, self.plain = how, nn.Linear(32, 32)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.listed = [self.first, self.second]
        with torch.no_grad():
            for layer in (self.plain, self.first, self.second):
                layer.weight.copy_(torch.randn(32, 4) @ torch.randn(4, 32) / 10)

    def forward(self, x):
        x = self.plain(x)
        for layer in self.listed if self.how == "listed" else (self.first, self.second):
            x = layer(x)
            if self.how == "listed" or isinstance(layer, nn.Linear):
                x = x.relu()
        return x


@pytest.mark.parametrize("how", ["listed", "type"])
def test_layers_that_are_not_used_as_what_they_are_stay(how):
    torch.manual_seed(0)
    model, x = Otherwise(how), torch.randn(4, 32)
    expected = model(x)
    report = lf.factorize(model, x, keep=0.76)
    assert {kept.tensor for kept in report.kept} == {"first", "second"}
    assert isinstance(model.plain, nn.Sequential) and isinstance(model.first, nn.Linear)
    assert model.listed == [model.first, model.second]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_layer_that_the_batches_do_not_reach_stays():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.often, self.rarely = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.often(x) + self.rarely(x) if len(x) == 2 else self.often(x)

    model, x = Routed(), torch.randn(2, 32)
    report = lf.factorize(model, x, keep=0.6, batches=[torch.randn(4, 32)])
    assert [(kept.tensor, kept.reason) for kept in report.kept] == [("rarely", "is not called on the batches")]


def _decaying(*shape):
    """A matrix whose singular values halve with every other one."""
    rank = min(shape)
    left, right = (torch.linalg.qr(_randn(size, rank))[0] for size in shape)
    return left * 0.7 ** torch.arange(rank, dtype=torch.float64) @ right.T


def _twice(kind):
    if kind == "linear":
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), _randn(200, 64)
    size, padding = (5, 2) if kind == "separable" else (3, 1)
    layers = [nn.Conv2d(32, 32, size, padding=padding, padding_mode="reflect") for _ in range(2)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1]), _randn(2, 32, 8, 8)


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("kind", ["linear", "convolution", "separable"])
def test_twice_is_as_once(kind, with_data):
    """What was factorized before is read as one layer again: two calls leave what one for the whole way does."""
    torch.manual_seed(0)
    model, x = _twice(kind)
    model.double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(_decaying(*layer.weight.shape) if kind == "linear" else layer.weight)
    batches = [x] if with_data else None
    once, twice = deepcopy(model), deepcopy(model)
    target = 0.3 * lf.count_parameters(model)
    lf.factorize(once, x, keep=0.3, batches=batches)
    lf.factorize(twice, x, keep=0.7, batches=batches)
    optimizer = torch.optim.Adam(twice.parameters())
    report = lf.factorize(twice, x, keep=target / lf.count_parameters(twice), batches=batches, optimizers=[optimizer])
    assert report.parameters_after == lf.count_parameters(twice) <= target
    assert [len(part) for part in (twice[0], twice[2])] == [2, 2]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in twice.parameters())
    dense = model(x)
    errors = [float((net(x) - dense).detach().square().mean()) for net in (once, twice)]
    assert errors[1] <= 1.2 * errors[0]
    other = deepcopy(model)
    lf.rebuild(other, lf.describe(twice))
    other.load_state_dict(twice.state_dict())
    torch.testing.assert_close(other(x), twice(x), rtol=1e-10, atol=1e-10)


def test_fewer_inputs_than_outputs_are_whitened_by_their_own_moments():
    """The best of its rank: the outputs' error is the energy left out of the singular values of the outputs."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 40), nn.Identity()).double(), _randn(50, 12) @ _decaying(12, 12)
    outputs = (x @ model[0].weight.T).detach()
    report = lf.factorize(model, x, keep=0.6, batches=[x[:20], x[20:]])
    rank = model[0][0].out_features
    assert not report.kept and 0 < rank < 12
    found = (model(x) - model[0][1].bias).detach()
    best = torch.linalg.svdvals(outputs)[rank:].square().sum()
    assert float((found - outputs).square().sum()) == pytest.approx(float(best), rel=1e-6)


def test_random_numbers_and_memory_format_stay():
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 5)).to(memory_format=torch.channels_last)
    state = torch.get_rng_state()
    lf.factorize(model, torch.randn(2, 16, 9, 9, generator=torch.Generator()), keep=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 4 and parameter.shape[-2:] != (1, 1)]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
