"""minimize on the networks of timm and torchvision: exact, whichever weights are zero, and training goes on."""

from copy import deepcopy

import pytest

import lightning_fold as lf
from benchmarks.networks import NETWORKS, PATTERNS, build, error_of, reachable_factor, runs_at, training_step

# Some in every run, to see that the families of operators meet; the others, of real width, take tens of minutes.
FAST = ("test_vit:32", "test_resnet:32", "test_convnext:32", "test_efficientnet:32", "test_byobnet:32", "test_nfnet:32")
CASES = [
    *(pytest.param(network, PATTERNS[i % len(PATTERNS)]) for i, network in enumerate(FAST)),
    *(pytest.param(network, pattern, marks=pytest.mark.slow) for network in NETWORKS for pattern in PATTERNS),
]


@pytest.mark.parametrize(("network", "pattern"), CASES)
def test_minimized_network_is_the_same_and_goes_on(network: str, pattern: str) -> None:
    case = build(network, pattern)
    model, dense = case.model, deepcopy(case.model)
    report = lf.minimize(model, case.images(2))
    assert error_of(model, dense, case.images(3, seed=4)) <= 1e-10  # another batch size, too
    if runs_at(dense, larger := case.images(2, seed=5, size=case.size + 32)):
        assert error_of(model, dense, larger) <= 1e-10
    assert report.parameters_after == lf.count_parameters(model) <= lf.count_parameters(dense)
    assert report.factor > 1.01 or report.kept or reachable_factor(dense, case.images(2)) <= 1.02
    assert lf.minimize(model, case.images(2)).changes == ()  # exported a second time
    images = case.images(4, seed=6)
    assert training_step(model, images)


def test_there_are_enough_networks() -> None:
    assert len(set(NETWORKS)) >= 60
