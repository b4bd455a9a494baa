"""describe and rebuild: a compressed network's structure survives as a plain dict."""

import json
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.layers import CompensatedNorm
from lightning_fold.rewrites.transaction import relative_error
from tests.zoo import ZOO, build, run

REWRITES: dict[str, Callable] = {
    "minimize": lambda model, inputs, **train: lf.minimize(model, inputs, **train),
    "prune": lambda model, inputs, **train: lf.prune(model, inputs, keep=0.6, of="channels", **train),
    "fold": lambda model, inputs, **train: lf.fold(model, inputs, keep=0.6, of="channels", **train),
    "factorize": lambda model, inputs, **train: lf.factorize(model, inputs, keep=0.9, **train),
}


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize(
    "name", ["mlp_no_bias", "residual", "grouped", "multiplier", "shared_linear", "option_a", "conv_stream"]
)
def test_round_trip_loads_strictly(name: str, rewrite: str) -> None:
    model, inputs = build(name, "rows"), ZOO[name].inputs()
    REWRITES[rewrite](model, inputs)
    structure = json.loads(json.dumps(lf.describe(model)))
    fresh = build(name, seed=5)
    lf.rebuild(fresh, structure)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(run(fresh, inputs), run(model, inputs))
    assert lf.describe(fresh) == lf.describe(model)
    assert sum(p.numel() for p in fresh.parameters()) == sum(p.numel() for p in model.parameters())
    fresh.train()(*inputs)


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("name", ZOO)
def test_there_and_back(name: str, rewrite: str) -> None:
    """What was dense before comes back into the compressed network, its optimizer with it."""
    model, inputs = build(name, "rows"), ZOO[name].inputs()
    before, state, expected = lf.describe(model), deepcopy(model.state_dict()), run(model, inputs)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    held = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        REWRITES[rewrite](model, inputs, optimizers=[optimizer])
    except ValueError:
        pytest.skip("nothing to do")
    twin = deepcopy(model)
    lf.rebuild(model, before, optimizers=[optimizer])
    lf.rebuild(twin, before)
    for network in (model, twin):
        network.load_state_dict(state)
        assert lf.describe(network) == before
        assert torch.equal(run(network, inputs), expected)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names.get(id(parameter)) for parameter in optimizer.param_groups[0]["params"]] == held


@pytest.mark.parametrize("saved", [False, True], ids=["rewritten", "loaded"])
def test_way_back_from_a_bias_that_a_rewrite_created(saved: bool) -> None:
    """A constant became the bias of the layer behind it, which was built without."""
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()  # noqa: E731
    model, x = make(), torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 1
    before, state, expected = lf.describe(model), deepcopy(model.state_dict()), model(x)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    lf.minimize(model, x, optimizers=[optimizer])
    assert model[2].bias is not None and len(optimizer.param_groups[0]["params"]) == 4
    if saved:
        structure, values = lf.describe(model), model.state_dict()
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        lf.rebuild(model, structure, optimizers=[optimizer])
        model.load_state_dict(values)
    compressed = deepcopy(model)
    with pytest.raises(ValueError, match="does not have; expected the structure of the same network"):
        lf.rebuild(model, before | {"1": before["1"] | {"type": "another.Network"}}, optimizers=[optimizer])
    assert torch.equal(model(x), compressed(x)) and len(optimizer.param_groups[0]["params"]) == 4
    lf.rebuild(model, before, optimizers=[optimizer])
    model.load_state_dict(state)
    assert torch.equal(model(x), expected) and lf.describe(model) == before
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, model.parameters()))
    with pytest.raises(ValueError, match="expected the structure of the same network"):
        lf.rebuild(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), before)  # this one was built with it


class Blur(nn.Module):
    """A fixed filter for each channel, in a buffer that the state dict leaves out, as timm's networks have them."""

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.register_buffer("filt", torch.rand(channels, 1, size, size).softmax(-1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.get_buffer("filt"), groups=self.channels)


def _blurred() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Blur(8), nn.Conv2d(8, 4, 1)).double()


def test_buffer_outside_the_state_dict_there_and_back() -> None:
    model, images = _blurred(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] = 0
        model[0].bias[[1, 4, 6]] = 0
    structure, state, expected = lf.describe(model), deepcopy(model.state_dict()), model(images)
    lf.minimize(model, images)
    assert model[2].channels == len(model[2].filt) == 5
    fresh = _blurred()
    lf.rebuild(fresh, json.loads(json.dumps(lf.describe(model))))
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(images), model(images))
    lf.rebuild(fresh, structure)
    fresh.load_state_dict(state, strict=True)
    assert torch.equal(fresh(images), expected)


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("name", ["residual", "grouped"])
def test_batch_norms_that_lightning_exchanges(name: str, rewrite: str) -> None:
    """Trainer(sync_batchnorm=True) trains SyncBatchNorm; files of it load where BatchNorm stands, and the other way."""
    inputs, plain = ZOO[name].inputs(), build(name, "rows")
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(plain))
    expected = run(plain, inputs)
    assert {type(m) for m in synced.modules()} & {nn.BatchNorm2d, nn.SyncBatchNorm} == {nn.SyncBatchNorm}
    for model in (plain, synced):
        REWRITES[rewrite](model, inputs)
    torch.testing.assert_close(synced.state_dict(), plain.state_dict(), rtol=0, atol=0)
    if rewrite == "minimize":
        assert relative_error([run(synced, inputs)], [expected]) < 1e-12
        assert lf.count_parameters(synced) < lf.count_parameters(build(name))
    for source in (plain, synced):
        for kind, fresh in {
            nn.BatchNorm2d: build(name, seed=5),
            nn.SyncBatchNorm: nn.SyncBatchNorm.convert_sync_batchnorm(build(name, seed=5)),
        }.items():
            lf.rebuild(fresh, lf.describe(source))
            fresh.load_state_dict(source.state_dict(), strict=True)
            assert torch.equal(run(fresh, inputs), run(source, inputs))
            norms = [module for module in fresh.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
            assert all(type(norm) is kind and norm.num_features == len(norm.running_mean) for norm in norms)


def test_one_rewrite_after_the_other() -> None:
    model, inputs = build("residual", "rows"), ZOO["residual"].inputs()
    lf.minimize(model, inputs)
    lf.fold(model, inputs, keep=0.8, of="channels")
    lf.factorize(model, inputs, keep=0.95)
    fresh = build("residual")
    lf.rebuild(fresh, lf.describe(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh, inputs), run(model, inputs))


@pytest.mark.parametrize("other", ["mlp_no_bias", "flatten", "residual", "two_outputs"])
def test_structure_of_another_network_is_refused(other: str) -> None:
    model = build("mlp")
    before = {key: (id(value), value.clone()) for key, value in model.state_dict(keep_vars=True).items()}
    text, widths = repr(model), [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    with pytest.raises(ValueError, match="expected the structure of the same network"):
        lf.rebuild(model, lf.describe(build(other)))
    assert repr(model) == text and [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == widths
    for key, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[key][0] and torch.equal(value, before[key][1])


def test_layers_put_in_front_come_and_go_with_the_optimizer() -> None:
    """A selection of inputs appears by rebuilding and disappears again; what is trained is always what is there."""
    dense, selected = build("mlp"), build("mlp")
    inputs = ZOO["mlp"].inputs()
    with torch.no_grad():
        next(selected.parameters())[:, 1:3] = 0
    lf.minimize(selected, inputs, select_inputs=True)
    assert any(isinstance(layer, lf.layers.SelectFeatures) for layer in selected.modules())
    model = build("mlp", seed=5)
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.get_rng_state()
    for goal in (selected, dense):
        lf.rebuild(model, lf.describe(goal), optimizers=[optimizer])
        model.load_state_dict(goal.state_dict())
        assert torch.equal(run(model, inputs), run(goal, inputs))
        trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(trained) == sorted(map(id, model.parameters()))
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("name", ["conv_stream", "gate"])
def test_way_back_to_the_norms_that_were_replaced(name):
    """A norm that counts removed channels gives way to the one of the user's class again, and trains."""
    model, inputs = build(name), ZOO[name].inputs()
    before, structure, state = run(model, inputs), lf.describe(model), deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    lf.sparsify(model, 0.7, criterion="connected", example_inputs=inputs, optimizers=[optimizer])
    lf.minimize(model, inputs, optimizers=[optimizer])
    assert any(isinstance(module, CompensatedNorm) for module in model.modules())
    lf.rebuild(model, structure, optimizers=[optimizer])
    model.load_state_dict(state)
    assert lf.describe(model) == structure
    torch.testing.assert_close(run(model, inputs), before, rtol=0, atol=0)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


class Scaled(nn.Module):
    """Two fixed scales behind a linear layer, of which the state dict holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6, bias=False)
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)
        self.register_buffer("saved", torch.full((6,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.get_buffer("scale") * self.get_buffer("saved")


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), Scaled(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x).relu()
        return self.head(x + self.two(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_way_back_to_a_branch_with_buffers_outside_the_state_dict(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Branched(), torch.randn(4, 6)
    structure, state, expected = lf.describe(model), deepcopy(model.state_dict()), model(x)
    with torch.no_grad():
        model.two.linear.weight.zero_()
    lf.minimize(model, x)
    assert not isinstance(model.two, Scaled)
    model.to(dtype)  # also what is remembered follows
    lf.rebuild(model, structure)
    model.load_state_dict(state)
    assert model.two.scale.dtype == dtype and "scale" in model.two._non_persistent_buffers_set
    torch.testing.assert_close(model(x.to(dtype)), expected.to(dtype), rtol=0, atol=0 if dtype == x.dtype else 1e-5)
