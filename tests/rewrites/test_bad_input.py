"""Bad input of prune, fold and factorize: a clear error or the nearest result, and the network unharmed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build, error_of, run

METHODS: dict[str, Callable[..., lf.RewriteReport]] = {"prune": lf.prune, "fold": lf.fold, "factorize": lf.factorize}
NAN, INFINITY = float("nan"), float("inf")
every_method = pytest.mark.parametrize("method", METHODS)


@contextmanager
def refused(model: nn.Module, message: str) -> Iterator[pytest.ExceptionInfo[ValueError]]:
    """A ``ValueError`` that says ``message`` and leaves every module and tensor as it was."""
    text, held = repr(model), {key: (id(v), v.clone()) for key, v in model.state_dict(keep_vars=True).items()}
    with pytest.raises(ValueError, match=message) as error:
        yield error
    found = model.state_dict(keep_vars=True)
    assert repr(model) == text
    assert {key: id(value) for key, value in found.items()} == {key: number for key, (number, _) in held.items()}
    for key, (_, before) in held.items():
        torch.testing.assert_close(found[key], before, rtol=0, atol=0, equal_nan=True)


@every_method
@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("1.conv1.weight", NAN, "holds NaN or infinity"),
        ("1.conv1.weight", INFINITY, "holds NaN or infinity"),
        ("1.bn1.running_mean", NAN, "holds NaN; "),
    ],
)
def test_network_that_is_not_finite(method: str, tensor: str, value: float, message: str) -> None:
    model, inputs = build("residual"), ZOO["residual"].inputs()
    model.state_dict()[tensor].flatten()[0] = value
    with refused(model, rf"{method}\(Sequential\): {tensor} {message}"):
        METHODS[method](model, inputs, keep=0.7)


@every_method
def test_data_that_is_not_finite(method: str) -> None:
    model, (x,) = build("residual"), ZOO["residual"].inputs()
    bad = x.clone()
    bad[0, 0, 0, 0] = NAN
    more: dict[str, Any] = {} if method == "factorize" else {"compensate": "least-squares"}
    for batches in ([x, bad], [bad, x]):
        with refused(model, "expected finite inputs, found NaN or infinity in an input of shape"):
            METHODS[method](model, x, keep=0.7, batches=batches, **more)
    with refused(model, "expected finite inputs"):
        lf.repair(model, [x, bad])
    with refused(model, rf"{method}\(Sequential\): the network returns NaN for the example inputs"):
        METHODS[method](model, bad, keep=0.7)


@every_method
def test_layers_that_are_too_small(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 3))
    message = "found none|still leaves" if method == "factorize" else "is the only one of its width"
    with refused(model, message):
        METHODS[method](model, torch.randn(2, 4), keep=0.5)


@every_method
@pytest.mark.parametrize("of", ["parameters", "flops"])
def test_the_least_that_an_error_names_can_be_had(method: str, of: str) -> None:
    """The smallest budget leaves one channel, or rank 1, everywhere."""
    model, inputs = build("mlp"), ZOO["mlp"].inputs()
    unit = {"parameters": "parameters", "flops": "FLOPs"}[of]
    message = rf"{method}\(keep=0.01.*\): .*still leaves 0\.\d+ of the {unit}; expected a share .* of at least"
    with refused(model, message) as error:
        METHODS[method](model, inputs, keep=0.01, of=of)
    least = float(str(error.value).split("still leaves ")[1].split()[0])
    report = METHODS[method](model, inputs, keep=least, of=of)
    hidden = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert min(hidden) == 1 and run(model, inputs).isfinite().all()
    left = report.parameters_after / report.parameters_before
    if of == "flops":
        assert report.flops_before and report.flops_after
        left = report.flops_after / report.flops_before
    assert left <= least


@pytest.mark.parametrize("options", [{"keep": 0.75, "of": "channels"}, {"keep": 0.9}])
def test_fewer_different_channels_than_clusters(options: dict[str, Any]) -> None:
    """No cluster is left empty: all that do the same become one, and a missed budget says so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        model[0].weight[:], model[0].bias[:] = model[0].weight[0], 0.5
        model[2].weight[:] = model[2].weight[:, :1]
    x = torch.randn(8, 6, dtype=torch.float64)
    expected = run(model, (x,))
    report = lf.fold(model, x, **options)
    assert model[0].out_features == 1 and error_of(run(model, (x,)), expected) < 1e-12
    share = report.parameters_after / report.parameters_before
    missed = "not the requested 90.0%: identical channels were merged"
    notes = [f"{share:.1%} of the parameters are left, {missed}"]
    assert list(report.notes) == (notes if "of" not in options else [])


@every_method
def test_weights_that_are_all_zero(method: str) -> None:
    model, inputs = build("mlp"), ZOO["mlp"].inputs()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = METHODS[method](model, inputs, keep=0.6)
    assert report.parameters_after <= 0.62 * report.parameters_before
    assert torch.equal(run(model, inputs), torch.zeros_like(run(model, inputs)))


@pytest.mark.parametrize("method", ["prune", "fold"])
@pytest.mark.parametrize("kind", ["assertion", "look-up"])
def test_code_that_asks_for_its_width(method: str, kind: str) -> None:
    """Whatever the network's own code raises, the error is the rewrite's and all is as it was."""

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.hidden(x)
            if kind == "assertion":
                assert x.shape[-1] == self.out.weight.shape[1] == 16, "width"
            return self.out(x * {16: 1.0}[self.out.weight.shape[1]])

    model, x = Asking(), torch.randn(4, 8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(lf.RewriteError, match=r"does not run with its new shapes: (AssertionError: width|KeyError: 8)"):
        METHODS[method](model, x)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["prune", "fold"])
def test_patterns_that_are_one_string(method: str) -> None:
    """It would be read letter by letter."""
    model, inputs = build("mlp"), ZOO["mlp"].inputs()
    with refused(model, rf"{method}\(skip='10'\): expected a list of patterns, skip=\['10'\]"):
        METHODS[method](model, inputs, keep=0.5, of="channels", skip="10")


@pytest.mark.parametrize("method", ["prune", "fold"])
def test_one_example_of_integers(method: str) -> None:
    """No noise stands for words, and one example has no variance: BatchNorms keep their statistics."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.hidden, self.norm = nn.Embedding(50, 16), nn.Linear(16, 32), nn.BatchNorm1d(32)
            self.out = nn.Linear(32, 4)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(self.hidden(self.words(words).mean(1))).relu())

    torch.manual_seed(0)
    model = Bag()
    before = lf.count_parameters(model)
    METHODS[method](model, torch.randint(50, (1, 6)), keep=0.7, compensate="least-squares")
    assert lf.count_parameters(model) == pytest.approx(0.7 * before, abs=0.03 * before)
    assert model(torch.randint(50, (3, 6))).isfinite().all()
