"""register_operator: an operator of another namespace holds channels until it is registered, whatever its name."""

import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.structure.operators.families import REGISTERED
from lightning_fold.structure.rules import Rule
from lightning_fold.structure.values import Value
from tests.zoo import error_of, run

WIDTH = 12


def defined(function, fake):
    """``function`` as the operator of this name."""
    operator = torch.library.custom_op(f"foreign::{function.__name__}", function, mutates_args=())
    operator.register_fake(fake)
    return operator


def dropout(x: Tensor) -> Tensor:  # called as one of ATen's, of which channels would be multiplied alike
    return x + torch.arange(x.shape[1], dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 2)) / 10


def relu(x: Tensor) -> Tensor:  # not zero for zero
    return x / (1 + x.abs()) + 0.5


def gate(x: Tensor, y: Tensor) -> Tensor:
    return torch.mul(x, y.sigmoid()).view(y.shape)  # neither broadcasts nor takes strides of 0


def swap(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


def halve(x: Tensor) -> Tensor:
    return F.avg_pool1d(x, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias) if bias is not None else x @ weight.T


def permute(x: Tensor, dims: list[int]) -> Tensor:  # of floating-point numbers alone
    return x.to(torch.promote_types(x.dtype, torch.float32)).permute(dims).clone()


def maxout(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 2)).amax(2)


def _same(x, *args):
    return torch.empty_like(x)


DROPOUT, RELU, GATE = defined(dropout, _same), defined(relu, _same), defined(gate, _same)
SWAP = defined(swap, lambda x: x.new_empty(x.shape[0], x.shape[2], x.shape[1]))
HALVE = defined(halve, lambda x: x.new_empty(*x.shape[:2], x.shape[2] // 2))
LINEAR = defined(linear, lambda x, weight, bias=None: x.new_empty(*x.shape[:-1], weight.shape[0]))
PERMUTE = defined(permute, lambda x, dims: x.new_empty([x.shape[dim] for dim in dims]))
MAXOUT = defined(maxout, lambda x: x.new_empty(x.shape[0], x.shape[1] // 2, *x.shape[2:]))


class Own(nn.Module):
    """A layer around an operator that reads parameters."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(10, WIDTH)), nn.Parameter(torch.randn(10))

    def forward(self, x):
        return LINEAR(x.mT, self.weight, self.bias).mT


class Between(nn.Module):
    """A layer of 12 channels, two of them constant and two unread, before one operator and a layer behind."""

    def __init__(self, between, width=WIDTH):
        super().__init__()
        self.one, self.between, self.two = nn.Conv1d(3, WIDTH, 3, padding=1), between, nn.Conv1d(width, 5, 1)
        self.head = nn.Linear(5, 4)
        with torch.no_grad():
            self.one.weight[:2] = 0
            self.one.bias[:2] = 0.3
            self.two.weight[:, (10 if width == WIDTH else 5) :] = 0

    def forward(self, x):
        return self.head(F.gelu(self.two(self.between(F.relu(self.one(x))))).mean(2))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.randn(WIDTH, 1))

    def forward(self, x):
        return GATE(x, self.slope.expand_as(x))


def label_pairs(run, node, args, kwargs):
    """Two channels make one: they leave together."""
    pairs = args[0].labels[1].reshape(-1, 2)
    run.tie(pairs[:, 0], pairs[:, 1])
    return Value(node.meta["val"].shape, {1: pairs[:, 0]})


# The operator, how it is registered, the network around it, and how many channels of the first layer are left.
CASES = {
    "called_as_dropout": (
        DROPOUT,
        {"rule": Rule(lambda run, node, args, kwargs: args[0])},
        lambda: lambda x: DROPOUT(x),
        10,
    ),
    "pointwise": (torch.ops.foreign.relu, {"like": "pointwise"}, lambda: lambda x: RELU(x), 8),
    "overload": (torch.ops.foreign.relu.default, {"like": torch.ops.aten.gelu}, lambda: lambda x: RELU(x), 8),
    "gate": (GATE, {"like": "pointwise"}, Gate, 8),
    "movement": (SWAP, {"like": "movement"}, lambda: lambda x: SWAP(SWAP(x).cos()), 8),
    "pooling": (HALVE, {"like": "pooling"}, lambda: lambda x: HALVE(x), 8),
    "like_linear": (LINEAR, {"like": torch.ops.aten.linear}, Own, 10),
    "like_permute": (PERMUTE, {"like": torch.ops.aten.permute}, lambda: lambda x: PERMUTE(x, [0, 1, 2]), 8),
    "own_rule": (MAXOUT, {"rule": SimpleNamespace(labels=label_pairs)}, lambda: lambda x: MAXOUT(x), 10),
}

CALLED = {
    "called_as_dropout": "dropout",
    "pointwise": "relu",
    "overload": "relu",
    "gate": "gate",
    "movement": "swap",
    "pooling": "halve",
    "like_linear": "linear",
    "like_permute": "permute",
    "own_rule": "maxout",
}


@pytest.fixture(autouse=True)
def _registered_for_one_test():
    before = dict(REGISTERED)
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


def network(name):
    torch.manual_seed(0)
    width = {"like_linear": 10, "own_rule": 6}.get(name, WIDTH)
    return Between(CASES[name][2](), width).double().eval()


@pytest.mark.parametrize("name", CASES)
def test_channels_leave_once_the_operator_is_registered(name):
    operator, registered, _, left = CASES[name]
    model, x = network(name), torch.randn(2, 3, 8, dtype=torch.float64)
    report = lf.minimize(model, x)
    assert model.one.out_channels == WIDTH
    assert any(f"operator foreign::{CALLED[name]} has no rule" in kept.reason for kept in report.kept)
    lf.register_operator(operator, **registered)
    dense = deepcopy(model)
    lf.minimize(model, x)
    assert model.one.out_channels == left
    for seed in range(2):
        x = torch.randn(5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("name", ["pointwise", "gate", "like_linear", "own_rule"])
def test_channels_are_pruned_through_it(name):
    operator, registered, _, _ = CASES[name]
    lf.register_operator(operator, **registered)
    model, x = network(name), torch.randn(2, 3, 8, dtype=torch.float64)
    lf.prune(model, x)
    assert model.one.out_channels < WIDTH and model(x).shape == (2, 4)


def test_an_operator_of_aten_without_a_rule_can_have_one():
    model, x = Between(lambda x: x.cumsum(2)).double().eval(), torch.randn(2, 3, 8, dtype=torch.float64)
    assert any("operator cumsum has no rule" in kept.reason for kept in lf.minimize(model, x).kept)
    lf.register_operator(torch.ops.aten.cumsum, rule=Rule(lambda run, node, args, kwargs: args[0]))
    lf.minimize(model, x)
    assert model.one.out_channels == 10


@pytest.mark.parametrize("registered", [False, True])
def test_layers_around_it_are_factorized(registered):
    if registered:
        lf.register_operator(RELU, like="pointwise")
    model, x = nn.Sequential(nn.Linear(40, 40), Call(RELU), nn.Linear(40, 40)), torch.randn(3, 40)
    lf.factorize(model, x)
    assert isinstance(model[0], nn.Sequential) and isinstance(model[2], nn.Sequential)
    assert model(x).shape == (3, 40)


class Call(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.forward = lambda x: operator(x)


def test_unread_channels_alone_are_pruned_without_a_change():
    """The rule of ATen's dropout, which has the same name, would keep channels and lose their offsets."""
    model, x = network("called_as_dropout"), torch.randn(9, 3, 8, dtype=torch.float64)
    dense = deepcopy(model)
    assert lf.prune(model, x, of="channels").kept and model.one.out_channels == WIDTH
    assert torch.equal(model.one.weight, dense.one.weight)


def test_an_operator_that_changes_its_argument_holds_channels_and_constants():
    operator = torch.library.custom_op("foreign::raise_", _raise, mutates_args=("x",))
    operator.register_fake(lambda x: None)

    def between(x):
        x = x * 1.0
        operator(x)
        return x

    model, x = Between(between).double().eval(), torch.randn(4, 3, 8, dtype=torch.float64)
    dense = deepcopy(model)
    report = lf.minimize(model, x)
    assert any("operator foreign::raise_ has no rule" in kept.reason for kept in report.kept)
    assert model.one.out_channels == WIDTH and error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    with pytest.raises(lf.ArgumentError, match=r"register_operator\(foreign\.raise_\.default\): changes its arguments"):
        lf.register_operator(operator, like="pointwise")


def _raise(x: Tensor) -> None:
    x += torch.arange(x.shape[1], dtype=x.dtype)[:, None]


def scaled(x: Tensor, eps: float = 1e-3) -> Tensor:
    return x * eps


def two(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + 1, x + 2


SCALED, TWO = defined(scaled, _same), defined(two, lambda x: (torch.empty_like(x), torch.empty_like(x)))


@pytest.mark.parametrize(
    ("operator", "arguments", "error", "message"),
    [
        (relu, {"like": "pointwise"}, TypeError, "expected an operator of torch, for example torch.ops.mine.gate"),
        (RELU, {}, ValueError, "(foreign.relu, like=None, rule=None): expected either like=... or rule=..."),
        (RELU, {"like": "relu", "rule": 1}, ValueError, "expected either"),
        (RELU, {"like": "activation"}, ValueError, "(foreign.relu, like='activation'): expected an operator of ATen"),
        (RELU, {"like": 3}, TypeError, "one of 'pointwise', 'identity', 'movement', 'pooling'"),
        (RELU, {"rule": 3}, TypeError, "rule=3): expected a lightning_fold.structure.rules.Rule"),
        (GATE, {"like": "identity"}, ValueError, "foreign::gate(Tensor x, Tensor y) -> Tensor; expected one tensor"),
        (TWO, {"like": "pointwise"}, ValueError, "-> (Tensor, Tensor); expected one or more tensors and one tensor"),
        (RELU, {"like": torch.ops.aten.cumsum}, ValueError, "aten.cumsum has no built-in rule"),
        (RELU, {"like": torch.ops.aten.layer_norm}, ValueError, "expected the arguments, defaults and results of aten"),
        (SCALED, {"like": torch.ops.aten.leaky_relu}, ValueError, "scaled(Tensor x, float eps=0.001"),
        (torch.ops.aten.dropout, {"like": "pointwise"}, ValueError, "has the built-in rule 'identity'"),
        (torch.ops.aten.relu.default, {"like": "identity"}, ValueError, "has the built-in rule 'pointwise'"),
    ],
)
def test_wrong_registrations_are_refused(operator, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)) as found:
        lf.register_operator(operator, **arguments)
    assert isinstance(found.value, lf.LightningFoldError) and str(found.value).startswith("register_operator(")


def test_the_last_registration_holds():
    model, x = network("pointwise"), torch.randn(2, 3, 8, dtype=torch.float64)
    lf.register_operator(torch.ops.foreign.relu.default, rule=Rule(lambda run, *rest: run.unknown(*rest)))
    assert lf.minimize(model, x).changes == ()
    lf.register_operator(torch.ops.foreign.relu, like="pointwise")
    lf.minimize(model, x)
    assert model.one.out_channels == 8


def test_a_rule_with_labels_of_another_shape_is_named():
    lf.register_operator(MAXOUT, rule=Rule(lambda run, node, args, kwargs: args[0]))
    with pytest.raises(lf.RewriteError, match=r"The rule of foreign::maxout gives .* here \(2, 6, 8\), with a label"):
        lf.minimize(network("own_rule"), torch.randn(2, 3, 8, dtype=torch.float64))
