"""factorize: layers under several names, layers that other code reads, complex weights."""

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
    report = lf.factorize(model, x, keep_parameters=keep, optimizers=[optimizer])
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
    report = lf.factorize(model, x, keep_parameters=0.95)
    share = f"{lf.count_parameters(model) / 84:.1%}"
    assert report.notes == (f"{share} of the parameters are left, the nearest to the 95.0% asked for",)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    flops = lf.count_flops(model, x)
    report = lf.factorize(model, x, keep_flops=0.9)
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
    report = lf.factorize(model, x, keep_parameters=0.8)
    reasons = {kept.tensor: kept.reason for kept in report.kept}
    assert reasons["encode"] == f"cannot be two layers: another module reads its {attribute}"
    kinds = {name: type(layer) for name, layer in model.named_children()}
    assert kinds["encode"] is nn.Linear and kinds["last"] is nn.Sequential
    assert model(x).shape == (4, 24)


def test_layer_that_nobody_calls_stays():
    model = nn.Sequential(nn.Linear(12, 12))
    model[0].auxiliary = nn.Linear(12, 12)
    with pytest.raises(ValueError, match=r"Left alone: 0\.auxiliary: is not called on the example inputs\."):
        lf.factorize(model, torch.randn(2, 12), keep_parameters=0.1)


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
    lf.factorize(model, x[:2], keep_parameters=0.6, batches=[x] if batches else None)
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
    with pytest.raises(ValueError, match=expected + "cannot be two layers: another module reads its weight;"):
        lf.factorize(model, torch.randn(2, 5, 12), keep_parameters=0.5)


def test_encoder_layers_of_torch_without_their_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(2, 5, 16)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        lf.factorize(model, x, keep_parameters=0.7)
        assert isinstance(model.layers[0].linear1, nn.Sequential)
        assert model(x).shape == model.train()(x).shape
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_full_rank_with_fewer_operations_is_the_last_rank():
    """Under so much padding that k x 1 then 1 x k at full rank costs less than the convolution."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(16, 2, 3, padding=(0, 20))).double(), _randn(2, 16, 6, 4)
    expected, flops = model(x), lf.count_flops(model, x)
    report = lf.factorize(model, x, keep_flops=0.9)
    assert model[0][0].out_channels == min(2 * 3, 16 * 3)
    assert report.notes == (
        f"{lf.count_flops(model, x) / flops:.1%} of the FLOPs are left, the nearest to the 90.0% asked for",
    )
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
