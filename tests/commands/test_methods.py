"""Every rewrite by a name: the name gives what the function gives."""

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.commands.methods import METHODS, apply, method_of, takes
from lightning_fold.errors import ArgumentError

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()


FUNCTIONS = {
    "prune": lambda model: lf.prune(model, X, keep=0.5),
    "prune-l1": lambda model: lf.prune(model, X, keep=0.5, importance="l1"),
    "fold": lambda model: lf.fold(model, X, keep=0.5),
    "factorize": lambda model: lf.factorize(model, X, keep=0.5),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_name_gives_what_the_function_gives(name: str) -> None:
    found, expected = _network(), _network()
    report = apply(name, found, X, keep=0.5)
    assert str(report) == str(FUNCTIONS[name](expected)) and repr(found) == repr(expected)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_every_name_is_a_method() -> None:
    assert all(callable(method_of("compress", name)) for name in METHODS)
    sized = {name for name in METHODS if takes(method_of("compress", name), "keep")}
    assert sized == METHODS.keys() - {"minimize"}


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("minimize", {"keep": 0.5}, "keep"),
        ("minimize", {"of": "flops"}, "of"),
        ("factorize", {"keep": 0.5, "skip": ["0"]}, "skip"),
        ("factorize", {"keep": 0.5, "repair": "data-free"}, "repair"),
        ("nothing", {"keep": 0.5}, "nothing"),
    ],
)
def test_argument_that_a_method_does_not_take_is_refused(name: str, options: dict, word: str) -> None:
    network = _network()
    with pytest.raises(ArgumentError, match=word):
        apply(name, network, X, **options)
    assert repr(network) == repr(_network())


def test_batches_reach_a_method_that_takes_some() -> None:
    found, expected = _network(), _network()
    apply("factorize", found, X, keep=0.5, batches=[(X, None), (X, None)])
    lf.factorize(expected, X, keep=0.5, batches=[(X, None), (X, None)])
    torch.testing.assert_close(found(X), expected(X), rtol=1e-12, atol=1e-12)
    assert repr(found) == repr(expected)
