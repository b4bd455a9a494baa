"""minimize on the whole zoo: exact, idempotent, never larger, and training goes on."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import lightning_fold as lf
from lightning_fold.layers import CompensatedLayerNorm, CompensatedRMSNorm, Constant, SelectFeatures
from tests.zoo import PATTERNS, ZOO, Head, build, error_of, flat, randomise, restore_statistics, run

CASES = [(name, pattern) for name in ZOO for pattern in PATTERNS]


@pytest.mark.parametrize(("name", "pattern"), CASES)
def test_exact_idempotent_and_never_larger(name: str, pattern: str) -> None:
    entry, model = ZOO[name], build(name, pattern)
    dense = deepcopy(model)
    report = lf.minimize(model, entry.inputs())
    assert report.max_relative_error is not None and report.max_relative_error <= 1e-12
    for batch, seed in ((5, 1), (1, 7), (9, 8)):
        inputs = entry.inputs(batch, seed=seed)
        assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12
    if entry.any_size:
        inputs = entry.inputs(6, grow=5, seed=9)
        assert error_of(run(model, inputs), run(dense, inputs)) <= 1e-12
    sizes = [sum(p.numel() for p in network.parameters()) for network in (dense, model)]
    assert sizes == [report.parameters_before, report.parameters_after] and sizes[1] <= sizes[0]
    new = {CompensatedLayerNorm, CompensatedRMSNorm, Constant, nn.Identity}
    assert {type(m) for m in model.modules()} - new <= {type(m) for m in dense.modules()}
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    once = {key: value.clone() for key, value in model.state_dict().items()}
    again = lf.minimize(model, entry.inputs())
    assert again.changes == () and again.parameters_after == again.parameters_before
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ZOO)
def test_without_zeros_nothing_changes(name: str) -> None:
    model = build(name)
    for parameter in model.parameters():
        with torch.no_grad():  # a constant as small as can be is still none
            parameter.add_(0.01 * torch.randn_like(parameter))
    # ReLUs that never open would be constants; with these inputs none of the contractions can know.
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = lf.minimize(model, ZOO[name].inputs())
    assert report.changes == ()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_something_goes_in_most_networks(pattern: str) -> None:
    shrunk = 0
    for name in ("mlp", "conv_norm", "conv_bias_padding", "separable", "flatten", "two_outputs", "residual"):
        shrunk += lf.minimize(build(name, pattern), ZOO[name].inputs()).factor > 1.05
    assert shrunk >= 6


def test_chain_reaches_the_expected_widths() -> None:
    """Of 16, 14, 12 units 3, 5 and 4 die in turn: unread, without inputs, and behind a unit that died."""
    model = build("mlp")
    one, two, three, last = (model[i] for i in (0, 2, 4, 6))
    with torch.no_grad():
        two.weight[:, :3] = 0  # units 0..2 of the first layer are read by nobody
        two.weight[[1, 4, 6, 7, 9]] = 0  # five units of the second layer are constants
        last.weight[:, [0, 5, 7, 11]] = 0  # four of the third are read by nobody
    x = ZOO["mlp"].inputs()[0]
    expected = run(model, (x,))
    lf.minimize(model, x)
    assert [tuple(layer.weight.shape) for layer in (one, two, three, last)] == [(13, 9), (9, 13), (8, 9), (4, 8)]
    assert (one.out_features, two.in_features, three.bias.shape[0]) == (13, 13, 8)
    assert error_of(run(model, (x,)), expected) <= 1e-12


@pytest.mark.parametrize(
    "name",
    ["mlp", "residual", "grouped", "shared_linear", "option_a", "two_inputs", "conv_no_bias", "group_norm", "gate"],
)
def test_training_goes_on_with_the_moments_of_what_stays(name: str) -> None:
    entry, model = ZOO[name], build(name, "both")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    _step(model, optimizer, entry.inputs())
    _zero_like_before(model)
    _tag_moments(model, optimizer)
    old = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    lf.minimize(model, entry.inputs(), optimizers=[optimizer])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    new = []
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter)
        if state is None:
            new.append(name)
            continue
        assert float(state["step"]) == 1.0 and torch.equal(state["exp_avg_sq"], -state["exp_avg"])
        source = state["exp_avg"].long()  # the old position of every element: each moment was its own flat index
        assert source.unique().numel() == parameter.numel()
        changed = old[name].flatten()[source] != parameter
        if parameter.dim() > 1:  # constants move into biases, or into one column through zero padding
            assert changed.transpose(0, 1).flatten(1).any(1).sum() <= 1
    assert all(name.endswith("bias") for name in new) and len(new) <= 3
    before = [p.detach().clone() for p in held]
    for _ in range(2):
        _step(model, optimizer, entry.inputs())
    moved = [bool((p != old).any()) for p, old in zip(model.parameters(), before, strict=True)]
    assert all(moved)


def test_moments_equal_an_independent_selection() -> None:
    model = build("mlp")
    with torch.no_grad():
        model[2].weight[:, [2, 5]] = 0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    _step(model, optimizer, ZOO["mlp"].inputs(), pinned=(model[2].weight, (slice(None), [2, 5])))
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
    lf.minimize(model, ZOO["mlp"].inputs(), optimizers=[optimizer])
    keep = [i for i in range(16) if i not in (2, 5)]
    states = [optimizer.state[p] for p in model.parameters()]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(states[0][key], moments[0][key][keep])
        assert torch.equal(states[1][key], moments[1][key][keep])
        assert torch.equal(states[2][key], moments[2][key][:, keep])
        assert torch.equal(states[6][key], moments[6][key])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
        lambda p: torch.optim.Adagrad(p, lr=1e-2),
        lambda p: torch.optim.NAdam(p, lr=1e-2),
        lambda p: torch.optim.Adafactor(p, lr=1e-2),
        lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    ],
    ids=["momentum", "sgd", "rmsprop", "adagrad", "nadam", "adafactor", "amsgrad"],
)
def test_other_optimizers_go_on(make) -> None:
    model = build("residual", "rows")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = make([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}])
    _step(model, optimizer, ZOO["residual"].inputs())
    _zero_like_before(model)
    assert lf.minimize(model, ZOO["residual"].inputs(), optimizers=[optimizer]).factor > 1.1
    groups = [[p.dim() > 1 for p in group["params"]] for group in optimizer.param_groups]
    assert all(groups[0]) and not any(groups[1])
    before = [p.detach().clone() for p in model.parameters()]
    _step(model, optimizer, ZOO["residual"].inputs())
    assert all(bool((p != old).any()) for p, old in zip(model.parameters(), before, strict=True))


def test_optimizer_state_of_a_foreign_shape_is_dropped_with_a_warning() -> None:
    model = build("mlp", "rows")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"flat": torch.zeros(parameter.numel() + 1)}
    with pytest.warns(UserWarning, match="starts without optimizer state"):
        lf.minimize(model, ZOO["mlp"].inputs(), optimizers=[optimizer])
    assert optimizer.state[model[0].weight] == {}


def test_frozen_parameters_stay_frozen() -> None:
    model = build("residual", "rows")
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    lf.minimize(model, ZOO["residual"].inputs())
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[1].parameters())


def test_operator_without_rule_is_named() -> None:
    model = build("unruled", "rows")
    report = lf.minimize(model, ZOO["unruled"].inputs())
    assert any("cumsum has no rule" in kept.reason for kept in report.kept)
    assert model.second.out_features == 10 and model.free.out_features < 11


class _Trap(nn.Module):
    """Networks that once came out wrong or did not come out at all."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))
        self.slope = nn.PReLU(8)
        self.unused = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(getattr(self, self.kind)(x))

    def positions(self, x: Tensor) -> Tensor:
        return self.second(x)[:, self.order] + x[:, 2:3]

    def rolled(self, x: Tensor) -> Tensor:
        return self.second(x).roll(1, dims=1) * x.flip(1)

    def written_view(self, x: Tensor) -> Tensor:
        y = self.second(x)
        y.view(-1).mul_(0.5).add_(1.0)
        y[:, 1] = 0
        return y

    def prelu(self, x: Tensor) -> Tensor:
        return self.slope(self.second(x))

    def glu(self, x: Tensor) -> Tensor:
        return F.glu(torch.cat([self.second(x), x], 1), dim=1)

    def chunks_apart(self, x: Tensor) -> Tensor:
        one, two = self.second(x).chunk(2, 1)
        return torch.cat([two.relu(), one.tanh()], 1)

    def dynamic(self, x: Tensor) -> Tensor:
        return F.linear(x, self.second(x.mean(0, keepdim=True)).expand(8, 8))

    def cast(self, x: Tensor) -> Tensor:
        return self.second(x.float().double()) * (x > 0.1)

    def borrowed_weight(self, x: Tensor) -> Tensor:
        return F.linear(x, self.second.weight)

    def no_grad(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.second(x).mean(1, keepdim=True)
        return self.second(x) * scale

    def padded(self, x: Tensor) -> Tensor:
        return F.pad(F.pad(self.second(x), (2, -3)), (0, 1))

    def random_like(self, x: Tensor) -> Tensor:
        return self.second(x) + torch.ones_like(x) * F.hardswish(x)


TRAPS = [name for name in vars(_Trap) if not name.startswith("_") and name != "forward"]


@pytest.mark.parametrize("kind", TRAPS)
@pytest.mark.parametrize("pattern", ["rows", "both"])
def test_traps(kind: str, pattern: str) -> None:
    torch.manual_seed(len(kind))
    model = _Trap(kind).double()
    with torch.no_grad():
        model.first.weight[[0, 4, 6]] = 0
        model.second.weight[[1, 2]] = 0
        if pattern == "both":
            model.second.weight[:, [3, 7]] = 0
            model.second.weight[[4, 5, 6, 7]] = 0
            model.last.weight[:, [2, 3, 5]] = 0
    dense, x = deepcopy(model), torch.randn(5, 6, dtype=torch.float64)
    lf.minimize(model, x)
    for seed in range(2):
        x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert error_of(model(x).detach(), dense(x).detach()) <= 1e-12
    assert lf.minimize(model, x).changes == ()


def test_dropout_in_place_behind_a_flatten_holds_nothing_fast() -> None:
    """In evaluation mode it writes nothing, although its schema says that it may write into a view."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(32, 4)
    )
    with torch.no_grad():
        model[0].weight[[1, 5]] = 0
    model.double().eval()
    report = lf.minimize(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert model[0].out_channels == 6 and report.kept == ()


@pytest.mark.parametrize("width", [1, 2])
def test_widths_of_one(width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 1, 3), Head(1, 1)
    ).double()
    randomise(model)
    with torch.no_grad():
        model[0].weight[0] = 0
    restore_statistics(model, (torch.randn(8, 1, 6, 6, dtype=torch.float64),))
    dense, x = deepcopy(model.eval()), torch.randn(4, 1, 6, 6, dtype=torch.float64)
    lf.minimize(model, x)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


def test_batch_norm_without_affine_or_statistics() -> None:
    torch.manual_seed(0)
    for options in ({"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8, **options),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            Head(6),
        ).double()
        randomise(model)
        with torch.no_grad():
            model[0].weight[:3] = 0
            model[3].weight[:, 5] = 0
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        dense = deepcopy(model.eval())
        lf.minimize(model, x)
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
        assert model[0].out_channels < 8


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_lower_precision(dtype: torch.dtype, bound: float) -> None:
    model = build("residual", "rows", dtype=dtype)
    dense, x = deepcopy(model), ZOO["residual"].inputs()[0].to(dtype)
    report = lf.minimize(model, x)
    assert report.factor > 1.1 and next(model.parameters()).dtype == dtype
    assert error_of(run(model, (x,)).double(), run(dense, (x,)).double()) <= bound


def test_channels_last_stays_channels_last() -> None:
    model = build("conv_norm", "rows").to(memory_format=torch.channels_last)
    dense, x = deepcopy(model), ZOO["conv_norm"].inputs()[0]
    lf.minimize(model, x)
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


def test_computed_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[4].weight[:, 2] = 0
    parametrizations.weight_norm(model[2])
    dense, x = deepcopy(model), torch.randn(4, 6, dtype=torch.float64)
    lf.minimize(model, x)
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("fails", [False, True])
def test_masks_of_torch_prune_are_baked_in(fails: bool) -> None:
    model, inputs = build("residual"), ZOO["residual"].inputs()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    _step(model, optimizer, inputs)
    for module in (model[1].conv1, model[2].conv1):
        moment = optimizer.state[module.weight]["exp_avg"].clone()
        prune.ln_structured(module, "weight", 0.5, n=2, dim=0)
        assert optimizer.state[module.weight_orig]["exp_avg"].equal(moment)
        with torch.no_grad():
            module.weight_orig += 1.0  # hidden by the mask
    if fails:  # two rows of the mask make the network's code fail
        model[1].bn1.register_forward_pre_hook(_eight_channels)
    expected, keys = run(model, inputs), list(model.state_dict())
    if fails:
        with pytest.raises(lf.RewriteError):
            lf.minimize(model, inputs, optimizers=[optimizer])
        assert list(model.state_dict()) == keys and prune.is_pruned(model)
        assert error_of(run(model, inputs), expected) == 0
        return
    report = lf.minimize(model, inputs, optimizers=[optimizer])
    assert report.factor > 1.2 and not prune.is_pruned(model) and not any("mask" in key for key in model.state_dict())
    assert error_of(run(model, inputs), expected) <= 1e-12
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()} and model[1].conv1.weight in optimizer.state


def _eight_channels(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    if args[0].shape[1] != 8:
        raise ValueError("expected 8 channels")


def test_training_flags_and_inputs_stay() -> None:
    model = build("residual", "rows").train()
    model[1].bn1.eval()
    x = ZOO["residual"].inputs()[0]
    flags, copy = [m.training for m in model.modules()], x.clone()
    lf.minimize(model, x)
    assert [m.training for m in model.modules()] == flags and torch.equal(x, copy)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(8, 4), (2, 8)),  # the network itself
        (lambda: nn.TransformerEncoderLayer(8, 2, dropout=0.0, batch_first=True), (2, 5, 8)),  # in_proj_weight
        (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, dropout=0.0, batch_first=True)), (2, 5, 8)),
    ],
)
def test_weights_without_a_layer_to_replace_read_all_inputs(make, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() > 1)[:, 1:3] = 0
    expected = model(x)
    lf.minimize(model, x, select_inputs=True)
    assert error_of(model(x), expected) <= 1e-12
    assert not any(isinstance(module, SelectFeatures) for module in model.modules())


def test_bad_inputs_are_refused() -> None:
    model = build("mlp", "rows")
    with pytest.raises(ValueError, match=r"Sequential cannot be traced with the example inputs \(2, 7\)"):
        lf.minimize(model, torch.randn(2, 7, dtype=torch.float64))
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"0\.weight holds NaN or infinity"):
        lf.minimize(model, ZOO["mlp"].inputs())


def test_code_that_fixes_a_size_is_refused_and_everything_put_back() -> None:
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu().view(-1, 6))

    model = Fixed().double()
    with torch.no_grad():
        model.one.weight[0] = 0
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    with pytest.raises(lf.RewriteError, match="as it was before"):
        lf.minimize(model, torch.randn(3, 4, dtype=torch.float64))
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0] and torch.equal(parameter, before[name][1])
    assert model.one.out_features == 6


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...], pinned=None) -> None:
    optimizer.zero_grad()
    model.eval()
    flat(model(*inputs)).square().mean().backward()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad += 1e-3 * torch.randn_like(parameter)
        parameter.grad *= parameter != 0
    if pinned is not None:
        pinned[0].grad[pinned[1]] = 0
    optimizer.step()
    optimizer.zero_grad()


def _zero_like_before(model: nn.Module) -> None:
    """Moments of Adafactor and weight decay leave zeros as they are; this is here to be sure."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < 1e-12] = 0


def _tag_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every moment becomes its own flat index, so that it says afterwards where it came from."""
    for parameter in model.parameters():
        tag = torch.arange(parameter.numel(), dtype=parameter.dtype).reshape(parameter.shape)
        optimizer.state[parameter].update(exp_avg=tag.clone(), exp_avg_sq=-tag)
