"""keep and of: checked alike everywhere; shares of channels, budgets and bounds come out as counted by hand."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import ChannelFolding, ChannelPruning, LowRankFactorization
from lightning_fold.rewrites.size import Size

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
REDUCTIONS = [lf.prune, lf.fold]
CALLS = {
    "prune": lambda **size: lf.prune(_network(), X, **size),
    "fold": lambda **size: lf.fold(_network(), X, **size),
    "factorize": lambda **size: lf.factorize(_network(), X, **size),
    "ChannelPruning": ChannelPruning,
    "ChannelFolding": ChannelFolding,
    "LowRankFactorization": LowRankFactorization,
}


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 4))


def _widths(network: nn.Sequential) -> list[int]:
    return [layer.out_features for layer in network if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("size", "kind", "message"),
    [
        (
            {"keep": "0.5"},
            TypeError,
            "(keep='0.5'): expected a number in (0, 1] or a mapping from layer patterns to such",
        ),
        ({"keep": True}, TypeError, "found a bool"),
        ({"keep": None}, TypeError, "found a NoneType"),
        ({"keep": {"0": "0.5", "*": 0.5}}, TypeError, "found a str"),
        ({"keep": {0: 0.5}}, TypeError, "found a int"),
        ({"keep": 0}, ValueError, "(keep=0): expected a share in (0, 1], for example keep=0.5"),
        ({"keep": 50}, ValueError, "(keep=50): expected a share in (0, 1]"),
        ({"keep": float("nan")}, ValueError, "(keep=nan): expected a share in (0, 1]"),
        ({"keep": {"*": 1.5}}, ValueError, "(keep={'*': 1.5}): expected a share in (0, 1]"),
        ({"keep": {}}, ValueError, "(keep={}): expected at least one pattern"),
        (
            {"keep": {"0": 0.9}},
            ValueError,
            "whole network's parameters under '*', for example keep={'0': 0.9, '*': 0.5}",
        ),
        ({"keep": {"0": 0.9}, "of": "flops"}, ValueError, "whole network's FLOPs under '*'"),
        ({"of": "layers"}, ValueError, "(of='layers'): expected one of 'parameters', 'flops', 'channels'"),
    ],
)
def test_wrong_sizes_are_named(name: str, size: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)) as error:
        CALLS[name](**size)
    assert isinstance(error.value, lf.LightningFoldError) and str(error.value).startswith(f"{name}(")


@pytest.mark.parametrize("method", REDUCTIONS)
@pytest.mark.parametrize("keep", [1, 0.7, 0.55, 0.01])
def test_a_share_of_the_channels_of_each_width(method, keep: float) -> None:
    network = _network()
    method(network, X, keep=keep, of="channels")
    assert _widths(network) == [max(round(keep * 30), 1), max(round(keep * 40), 1), 4]


@pytest.mark.parametrize("method", REDUCTIONS)
@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ({"0": 0.5}, [15, 40, 4]),  # what nothing matches stays
        ({"2": 0.5}, [30, 20, 4]),  # the width that layer 2 writes, not the one that it reads
        ({"0": 0.5, "*": 0.25}, [15, 10, 4]),
        ({"*": 0.25, "0": 0.5}, [15, 10, 4]),  # "*" is the rest, wherever it is written
        ({"[02]": 0.5, "0": 0.1}, [15, 20, 4]),  # the first that matches counts
        ({"0": 0.1, "[02]": 0.5}, [3, 20, 4]),
    ],
)
def test_shares_by_pattern(method, keep: dict[str, float], expected: list[int]) -> None:
    network = _network()
    method(network, X, keep=keep, of="channels")
    assert _widths(network) == expected


@pytest.mark.parametrize("method", REDUCTIONS)
@pytest.mark.parametrize("of", ["parameters", "flops"])
def test_other_patterns_are_bounds_under_a_budget(method, of) -> None:
    free, bound = _network(), _network()
    method(free, X, keep=0.5, of=of)
    report = method(bound, X, keep={"2": 0.9, "*": 0.5}, of=of)
    assert _widths(free)[1] < 36 <= _widths(bound)[1]
    left = getattr(report, f"{of}_after") / getattr(report, f"{of}_before")
    assert abs(left - 0.5) <= 0.03


def test_a_rest_alone_is_the_number() -> None:
    for method in (*REDUCTIONS, lf.factorize):
        one, other = _network(), _network()
        method(one, X, keep=0.6)
        method(other, X, keep={"*": 0.6})
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_half_of_the_parameters_is_the_default() -> None:
    for method in (*REDUCTIONS, lf.factorize):
        report = method(_network(), X)
        assert abs(report.parameters_after / report.parameters_before - 0.5) <= 0.03
    for kind in (ChannelPruning, ChannelFolding, LowRankFactorization):
        assert (kind().keep, kind().of) == (0.5, "parameters")


def test_bounds_that_the_budget_cannot_hold_are_refused() -> None:
    for method in (*REDUCTIONS, lf.factorize):
        with pytest.raises(ValueError, match=r"'\*': 0.3}\): the smallest .* still leave 0\.\d+ of the parameters"):
            method(_network(), X, keep={"[02]": 0.9, "*": 0.3})


@pytest.mark.parametrize("method", [*REDUCTIONS, lf.factorize])
@pytest.mark.parametrize("of", ["parameters", "channels"])
def test_a_pattern_that_matches_nothing_is_refused(method, of) -> None:
    network = _network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"'layers\.0' matches no layer whose size can change; .* one of '0', '2'"):
        method(network, X, keep={"layers.0": 0.5, "*": 0.5}, of=of)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_widths_of_one_attention_keep_equally_many() -> None:
    """Queries and keys are named, values are not: heads are cut in one view, so the larger share counts."""
    from tests.zoo import ZOO, build, run

    network, inputs = build("attention_fused"), ZOO["attention_fused"].inputs()
    lf.prune(network, inputs, keep={"*qkv*": 0.5}, of="channels")
    assert run(network, inputs).isfinite().all()


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.01])
def test_channels_of_low_rank_are_shares_of_the_full_rank(keep: float) -> None:
    network = _network()
    report = lf.factorize(network, X, keep=keep, of="channels")
    for layer, (rows, columns) in zip(network[::2], [(30, 16), (40, 30), (4, 40)], strict=True):
        rank = max(round(keep * min(rows, columns)), 1)
        if rank * (rows + columns) < rows * columns:
            assert isinstance(layer, nn.Sequential) and layer[0].out_features == rank
        else:
            assert isinstance(layer, nn.Linear)
    assert all("at this rank" in kept.reason for kept in report.kept)


def test_low_rank_by_pattern() -> None:
    network = _network()
    report = lf.factorize(network, X, keep={"2": 0.2}, of="channels")
    assert [type(layer) for layer in network[::2]] == [nn.Linear, nn.Sequential, nn.Linear]
    assert {kept.tensor: kept.reason for kept in report.kept} == dict.fromkeys(
        ["0", "4"], "no pattern of keep matches it"
    )
    bound = _network()
    lf.factorize(bound, X, keep={"2": 0.7, "*": 0.55})
    (first, second) = bound[2]
    assert first.weight.numel() + second.weight.numel() >= 0.7 * 30 * 40


def test_size_reads_as_it_is_written_in_a_call() -> None:
    assert str(Size()) == "keep=0.5" and str(Size({"a": 1}, "flops")) == "keep={'a': 1}, of='flops'"


def test_numbers_of_other_libraries_are_numbers() -> None:
    import numpy as np

    for number in (np.float32(0.5), np.float64(0.5), 1):
        partial(Size, number)().check("prune")
