"""Smoothness: which weights, how strong, and what is added to their gradients."""

import pickle
import re
import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import random_unstructured

import lightning_fold as lf
from lightning_fold.regularizers import Smoothness, first_difference, nuclear_norm, spectrum_decay


def make():
    torch.manual_seed(0)
    network = nn.Sequential()
    network.stem = nn.Conv2d(2, 6, 3)
    network.depthwise = nn.Conv2d(6, 6, 3, groups=6)
    network.norm = nn.BatchNorm2d(6)
    network.up = nn.ConvTranspose2d(6, 6, 2)
    network.block = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    return network.double()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["stem.weight", "block.0.weight", "block.2.weight"]),
        ({"layers": ["block.*"]}, ["block.0.weight", "block.2.weight"]),
        ({"layers": ["Conv2d"]}, ["stem.weight"]),
        ({"layers": ["stem", "*.2"], "skip": ["stem"]}, ["block.2.weight"]),
        ({"skip": ["Linear", "Conv*"]}, []),
    ],
)
def test_selection_by_name_and_type(arguments, expected):
    assert list(Smoothness(**arguments).weights(make())) == expected


def test_tied_weights_count_once_and_frozen_ones_not():
    network = make()
    network.block[2] = nn.Linear(6, 8).double()
    network.block[2].weight = network.block[0].weight
    network.stem.requires_grad_(False)
    assert list(Smoothness().weights(network)) == ["block.0.weight"]
    assert list(Smoothness().weights(network, frozen=True)) == ["stem.weight", "block.0.weight"]


@pytest.mark.parametrize("penalty", ["first_difference", "second_difference", "nuclear_norm", "group_sparsity"])
def test_empty_and_complex_weights_are_left_alone(penalty):
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5, dtype=torch.cfloat), nn.LazyLinear(5))
    network.append(nn.Conv2d(5, 1, 1))
    network[3].weight = nn.Parameter(torch.zeros(0, 5, 1, 1))
    assert list(Smoothness().weights(network)) == ["0.weight", "2.weight"]
    network[2](torch.rand(2, 5))
    values = Smoothness({penalty: 0.1}).add_gradients(network, step=0, epoch=0)
    assert [layer.weight.grad is not None for layer in network] == [True, False, True, False]
    assert values[penalty].isfinite()


def test_weights_behind_masks_and_computed_ones():
    network = make()
    random_unstructured(network.stem, "weight", 0.5)
    weight_norm(network.block[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(network.block[2])
    smoothness = Smoothness({"nuclear_norm": 0.1})
    assert list(smoothness.weights(network)) == ["stem.weight_orig"]
    assert smoothness.computed(network) == ["block.0", "block.2"]
    assert Smoothness(layers=["Linear"]).computed(network) == ["block.0", "block.2"]
    assert Smoothness(skip=["block.*"]).computed(network) == []
    smoothness.add_gradients(network, step=0, epoch=0)
    masked = (network.stem.weight_orig * network.stem.weight_mask).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(nuclear_norm(masked), masked)
    torch.testing.assert_close(network.stem.weight_orig.grad, 4 * 0.1 * gradient * network.stem.weight_mask)
    assert smoothness.spectrum_decay(network) == spectrum_decay({"stem": masked})


def test_gradients_are_those_of_the_penalties():
    network = make()
    smoothness = Smoothness({"nuclear_norm": 0.3, "first_difference": 0.2}, every=3)
    before = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    network.stem.weight.grad = before.clone()
    values = smoothness.add_gradients(network, step=6, epoch=0)
    found = [network.stem.weight.grad - before, network.block[0].weight.grad, network.block[2].weight.grad]
    weights = [w.detach().clone().requires_grad_() for w in smoothness.weights(network).values()]
    nuclear = torch.stack([torch.linalg.svdvals(w.flatten(1)).sum() for w in weights]).sum()
    first = torch.stack([w.numel() * first_difference(w) for w in weights]).sum()
    (3 * (0.3 * nuclear + 0.2 * first)).backward()
    for gradient, weight in zip(found, weights, strict=True):
        torch.testing.assert_close(gradient, weight.grad, rtol=0, atol=1e-4)
    assert float(values["nuclear_norm"]) == pytest.approx(float(nuclear), rel=1e-5)
    assert float(values["first_difference"]) == pytest.approx(float(first), rel=1e-12)
    assert network.depthwise.weight.grad is None and network.norm.weight.grad is None


def test_mean_strength_does_not_depend_on_how_often():
    """On weights that stand still, N steps add the same for every interval that divides N."""
    totals = []
    for every in (1, 3, 6):
        network = make()
        smoothness = Smoothness({"nuclear_norm": 0.1}, every=every)
        for step in range(6):
            smoothness.add_gradients(network, step=step, epoch=0)
        totals.append(network.stem.weight.grad)
    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(totals[0], totals[2])


def test_strength_grows_over_the_warm_up():
    smoothness = Smoothness(start_epoch=2, warmup_epochs=3)
    assert [smoothness.strength(epoch) for epoch in range(7)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [Smoothness().strength(epoch) for epoch in range(2)] == [1, 1]
    network = make()
    assert smoothness.add_gradients(network, step=0, epoch=1) == {}
    assert network.stem.weight.grad is None


def test_only_trained_parameters_get_gradients():
    network = make()
    Smoothness(every=1).add_gradients(network, step=5, epoch=0, trained=network.block[0].parameters())
    assert network.stem.weight.grad is None and network.block[0].weight.grad is not None
    assert network.block[0].bias.grad is None


def test_goes_on_after_a_rewrite():
    network = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3))
    smoothness = Smoothness({"nuclear_norm": 1.0}, every=1)
    lf.factorize(network, torch.randn(2, 30), keep=0.5)
    smoothness.add_gradients(network, step=0, epoch=0)
    first = network[0][0].weight
    torch.testing.assert_close(first.grad, torch.autograd.grad(nuclear_norm(first), first)[0])


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("penalty", ["first_difference", "second_difference", "nuclear_norm", "group_sparsity"])
def test_float16_follows_float32(penalty, squared):
    """Of a layer with more weights than float16 can count."""
    torch.manual_seed(0)
    half = nn.Linear(300, 300, dtype=torch.float16)
    single = deepcopy(half).float()
    for layer in (half, single):
        Smoothness({penalty: 1e-2}, squared=squared).add_gradients(nn.Sequential(layer), step=0, epoch=0)
    torch.testing.assert_close(half.weight.grad.float(), single.weight.grad, rtol=2e-3, atol=1e-6)
    assert half.weight.grad.dtype == torch.float16


@pytest.mark.parametrize("arguments", [{"skip": ["stem"]}, {"layers": ["block.*"]}, {"layers": ["*.0"]}], ids=str)
def test_names_are_those_without_compile(arguments):
    network, smoothness = make(), Smoothness(**arguments)
    expected = list(smoothness.weights(network))
    network.block = torch.compile(network.block)
    for compiled in (network, torch.compile(network)):
        assert list(smoothness.weights(compiled)) == expected
        smoothness.check_patterns(compiled)


@pytest.mark.parametrize("argument", ["layers", "skip"])
def test_pattern_that_matches_no_layer_is_refused(argument):
    network = make()
    for pattern in ("stem", "depthwise", "block.*", "Conv*", "*"):
        Smoothness(**{argument: [pattern]}).check_patterns(network)
    for pattern in ("block", "norm", "stem.weight", "conv2d", "_orig_mod.*"):
        expected = (
            f"Smoothness({argument}=['{pattern}']): matches no linear layer or convolution of Sequential; expected"
        )
        with pytest.raises(
            ValueError, match=re.escape(f"{expected} a pattern of dotted names such as stem, depthwise")
        ):
            Smoothness(**{argument: ["stem", pattern]}).check_patterns(torch.compile(network))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"layers": ["block.0"]}, ["block.0.0.weight", "block.0.1.weight"]),
        ({"skip": ["block.0"]}, ["block.2.weight"]),
        ({"layers": ["block.0.1"]}, ["block.0.1.weight"]),
        ({"layers": ["block"]}, []),
    ],
    ids=str,
)
def test_what_a_rewrite_made_of_a_layer_is_selected_as_that_was(arguments, expected):
    network = nn.Sequential()
    network.block = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3))
    lf.factorize(network, torch.randn(2, 30), keep=0.6)
    assert isinstance(network.block[0], nn.Sequential) and isinstance(network.block[2], nn.Linear)
    smoothness = Smoothness(**arguments)
    assert list(smoothness.weights(network)) == list(smoothness.weights(torch.compile(network))) == expected


def test_patterns_of_layers_that_a_rewrite_replaced_are_known():
    network, x = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 20)), torch.randn(2, 30)
    smoothness = Smoothness(layers=["*"], skip=["0"])
    lf.factorize(network, x, keep=0.5)
    assert isinstance(network[0], nn.Sequential)
    smoothness.check_patterns(network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"penalties": {}},
            r"Smoothness\(penalties=\{\}\): expected finite strengths of at least 0 for names among nuclear_n",
        ),
        ({"penalties": {"nuclear": 1.0}}, "nuclear_norm"),
        ({"penalties": {"nuclear_norm": -1.0}}, "at least 0"),
        ({"penalties": {"nuclear_norm": float("nan")}}, "at least 0"),
        ({"penalties": {"nuclear_norm": float("inf")}}, "expected finite strengths"),
        ({"every": 0}, r"Smoothness\(every=0\): expected a whole number of at least 1"),
        ({"every": 2.5}, r"Smoothness\(every=2\.5\): expected a whole number of at least 1"),
        ({"start_epoch": 0.5}, r"Smoothness\(start_epoch=0\.5\): expected a whole number of at least 0"),
        ({"warmup_epochs": -1}, r"warmup_epochs=-1"),
        ({"axes": ["outputs"]}, r"axes=\['outputs'\]"),
        (
            {"penalties": {"nuclear_norm": 1.0, "first_difference": 1.0}, "axes": []},
            r"Smoothness\(axes=\[\]\): expected one or more of output, input, space for first_difference",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Smoothness(**arguments)


def test_the_nuclear_norm_needs_no_axes():
    found = []
    for axes in ([], ["output"]):
        network = make()
        smoothness = Smoothness({"nuclear_norm": 0.1, "first_difference": 0.0}, axes=axes)
        smoothness.add_gradients(network, step=0, epoch=0)
        found.append(network.stem.weight.grad)
    assert torch.equal(*found)


def test_group_sparsity_along_an_axis_that_a_layer_has_not():
    """Only convolutions have space; a linear layer beside one is left as it is."""
    network = make()
    Smoothness({"group_sparsity": 0.1}, axes=["space"], every=1).add_gradients(network, step=0, epoch=0)
    assert not network.block[0].weight.grad.any()
    weight = network.stem.weight.detach()
    rows, columns = (weight.square().sum(dims, keepdim=True).sqrt() for dims in ((0, 1, 3), (0, 1, 2)))
    torch.testing.assert_close(network.stem.weight.grad, 0.1 * (weight / rows + weight / columns))


@pytest.mark.parametrize("copy", [deepcopy, lambda smoothness: pickle.loads(pickle.dumps(smoothness))])
@pytest.mark.parametrize("penalty", ["first_difference", "second_difference", "nuclear_norm", "group_sparsity"])
def test_copies_have_arguments_of_their_own(copy, penalty):
    """And are sent to the processes of ddp_spawn."""
    smoothness = Smoothness({penalty: 0.1}, axes=["input"], squared=False)
    copied = copy(smoothness)
    smoothness.axes[:], smoothness.squared = ["output"], True
    gradients = []
    for each in (copied, Smoothness({penalty: 0.1}, axes=["input"], squared=False)):
        network = make()
        each.add_gradients(network, step=0, epoch=0)
        gradients.append(network.block[0].weight.grad)
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize("argument", ["layers", "skip", "axes"])
def test_one_name_is_no_list(argument):
    with pytest.raises(
        ValueError, match=rf"Smoothness\({argument}='output'\): expected a list, {argument}=\['output'\]"
    ):
        Smoothness(**{argument: "output"})
