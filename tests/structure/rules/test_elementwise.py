"""Element by element: operands share their channels; what known values make is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.reading import Apply, channels, known, pinned

X = torch.randn(2, 3, dtype=torch.float64)


def _two(function) -> nn.Module:
    parts = {name: nn.Linear(3, 2, bias=False) for name in ("a", "b")}
    return Apply(lambda m, x: m.out(function(m.a(x), m.b(x))), **parts, out=nn.Linear(2, 3, bias=False)).double()


@pytest.mark.parametrize("function", [torch.add, torch.mul, torch.maximum, lambda a, b: a / b.exp()])
def test_operands_share_their_channels(function) -> None:
    expected = [{f"a.weight[{i}]", f"b.weight[{i}]", f"out.weight[:, {i}]"} for i in range(2)]
    assert channels(_two(function), X) == expected


def test_parameter_follows_the_channels_it_scales() -> None:
    parts = {"a": nn.Linear(3, 2, bias=False), "scale": nn.Parameter(torch.ones(2))}
    model = Apply(lambda m, x: m.out(m.a(x) * m.scale), **parts, out=nn.Linear(2, 3)).double()
    assert channels(model, X) == [{f"a.weight[{i}]", f"scale[{i}]", f"out.weight[:, {i}]"} for i in range(2)]


def test_tensor_of_fixed_size_holds_the_channels_it_meets() -> None:
    model = Apply(lambda m, x: m.out(m.a(x) + x), a=nn.Linear(3, 3), out=nn.Linear(3, 2)).double()
    assert channels(model, X) == [] and {("a.weight", 0), ("out.weight", 1)} <= pinned(model, X)


@pytest.mark.parametrize("slopes", [1, 2])
def test_slope_of_a_prelu_follows_where_each_channel_has_its_own(slopes: int) -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.PReLU(slopes), nn.Linear(2, 3)).double()
    own = [{f"1.weight[{i}]"} if slopes == 2 else set() for i in range(2)]
    assert channels(model, X) == [{f"0.weight[{i}]", f"2.weight[:, {i}]"} | own[i] for i in range(2)]


def _constant(values: list[float], free: int = 1) -> nn.Linear:
    """Writes ``values``, and then channels that depend on the input."""
    layer = nn.Linear(3, len(values) + free).double()
    with torch.no_grad():
        layer.weight[: len(values)] = 0
        layer.bias[: len(values)] = torch.tensor(values)
    return layer


@pytest.mark.parametrize("function", [F.relu, F.hardswish, F.gelu, torch.tanh, lambda x: x.square() + 1])
def test_function_of_a_constant_is_known(function) -> None:
    values = [-2.0, 0.0, 1.5]
    found = known(Apply(lambda m, x: function(m.a(x)), a=_constant(values)), X)
    expected = function(torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(found[:, :3], expected.expand(2, 3), rtol=1e-15, atol=0)
    assert found[:, 3].isnan().all()


def test_product_with_zero_is_zero_whatever_the_other_factor_is() -> None:
    model = Apply(lambda m, x: m.a(x) * m.b(x), a=_constant([0.0, 2.0]), b=nn.Linear(3, 3).double())
    found = known(model, X)
    assert torch.equal(found[:, 0], torch.zeros(2).double()) and found[:, 1:].isnan().all()


def test_prelu_of_a_constant_and_a_cast_of_it_are_known() -> None:
    model = Apply(lambda m, x: m.act(m.a(x)).float().double(), a=_constant([-2.0, 3.0]), act=nn.PReLU(3).double())
    assert torch.equal(known(model, X)[0, :2], Tensor([-0.5, 3.0]).double())
