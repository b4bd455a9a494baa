"""Penalties from outside the package: functions and classes, in Python, by dotted path and in YAML."""

import pickle
import re
from copy import deepcopy
from functools import partial

import pytest
import torch
import yaml
from torch import nn

import lightning_fold as lf
from lightning_fold.cli import main
from lightning_fold.regularizers import Smoothness, first_difference
from lightning_fold.regularizers.penalties import BUILT_IN

MODULE = '''
import torch

def spectral_norm(weight, power=1):
    return torch.linalg.matrix_norm(weight.flatten(1), 2) ** power

def by_rows(weight, axes):
    return weight.square().sum() if "output" in axes else weight.new_zeros(())

class Distance:
    """To the first weight of each shape that it has seen."""

    def __init__(self, power: float = 2.0):
        self.power, self.first = power, {}

    def __call__(self, weight):
        first = self.first.setdefault(weight.shape, weight.detach().clone())
        return (weight - first).abs().pow(self.power).sum()

class Tools:
    @staticmethod
    def spectral_norm(weight):
        return 2 * spectral_norm(weight)

def vector(weight):
    return weight.sum(1)

NUMBER = 3
'''


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A module that this package knows nothing of."""
    (tmp_path / "foreign_penalties.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "foreign_penalties", raising=False)
    return __import__("foreign_penalties")


def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5)).double()


def gradient(smoothness, network=None):
    network = network or layer()
    return network, smoothness.add_gradients(network, step=0, epoch=0), network[0].weight.grad


def test_function_by_path_and_itself(foreign):
    found = [
        gradient(Smoothness({key: 0.3}, every=1)) for key in ("foreign_penalties.spectral_norm", foreign.spectral_norm)
    ]
    left, values, right = torch.linalg.svd(layer()[0].weight.detach())
    for _, logged, added in found:
        torch.testing.assert_close(added, 0.3 * torch.outer(left[:, 0], right[0]))
        assert logged.keys() == {"spectral_norm"} and float(logged["spectral_norm"]) == pytest.approx(float(values[0]))


def test_arguments_stand_beside_the_strength(foreign):
    _, logged, _ = gradient(Smoothness({"foreign_penalties.spectral_norm": {"strength": 0.3, "power": 3}}))
    assert float(logged["spectral_norm"]) == pytest.approx(
        float(torch.linalg.svdvals(layer()[0].weight.detach())[0]) ** 3
    )


def test_axes_come_from_smoothness_or_from_its_own_arguments(foreign):
    """And a penalty that is a constant adds nothing."""
    for axes, own, expected in ((["output"], {}, 2.0), (["input"], {}, 0.0), (["input"], {"axes": ["output"]}, 2.0)):
        smoothness = Smoothness({foreign.by_rows: {"strength": 1.0, **own}}, axes=axes, every=1)
        network, _, added = gradient(smoothness)
        torch.testing.assert_close(added, expected * network[0].weight.detach())
    with pytest.raises(lf.ArgumentError, match=r"Smoothness\(axes=\[\]\): expected one or more of .*by_rows"):
        Smoothness({"foreign_penalties.by_rows": 1.0}, axes=[])


def test_a_class_is_one_object_that_may_hold_state(foreign):
    smoothness = Smoothness({"foreign_penalties.Distance": {"strength": 0.5, "power": 2.0}}, every=1)
    network, _, added = gradient(smoothness)
    assert not added.any()
    with torch.no_grad():
        network[0].weight += 1
    for copy in (deepcopy(smoothness), pickle.loads(pickle.dumps(smoothness)), smoothness):
        network.zero_grad()
        torch.testing.assert_close(gradient(copy, network)[2], torch.ones(5, 6, dtype=torch.float64))


def test_two_that_end_alike_are_logged_by_their_paths(foreign):
    names = ["foreign_penalties.spectral_norm", "foreign_penalties:Tools.spectral_norm"]
    _, logged, _ = gradient(Smoothness(dict.fromkeys(names, 0.1)))
    assert list(logged) == names and float(logged[names[1]]) == pytest.approx(2 * float(logged[names[0]]))


def test_settings_are_plain_and_build_the_same(foreign):
    smoothness = Smoothness({foreign.Distance: {"strength": 1e-2, "power": 1.5}, foreign.spectral_norm: 0.1})
    arguments = smoothness.arguments()
    assert arguments["penalties"] == {
        "foreign_penalties.Distance": {"strength": 1e-2, "power": 1.5},
        "foreign_penalties.spectral_norm": 0.1,
    }
    assert Smoothness(**yaml.safe_load(yaml.safe_dump(arguments))).arguments() == arguments


def test_a_built_in_function_is_the_built_in_penalty():
    """In which a difference counts once for each weight of a layer."""
    found = [
        gradient(Smoothness({key: 0.1}))[2]
        for key in ("first_difference", first_difference, "lightning_fold.regularizers.first_difference")
    ]
    assert found[0].any() and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_penalty_is_built_in_by_one_line(foreign, monkeypatch):
    monkeypatch.setitem(BUILT_IN, "spectral_norm", foreign.spectral_norm)
    _, logged, _ = gradient(Smoothness({"spectral_norm": 0.1}))
    assert float(logged["spectral_norm"]) == pytest.approx(float(torch.linalg.svdvals(layer()[0].weight.detach())[0]))


@pytest.mark.parametrize(
    ("penalties", "error", "message"),
    [
        ({"foreign_penalties.other": 1.0}, lf.ArgumentError, "has no attribute 'other'; expected the dotted path"),
        ({"no_such_module.penalty": 1.0}, lf.ArgumentError, "No module named 'no_such_module'; expected the dotted"),
        ({"foreign_penalties.NUMBER": 1.0}, lf.ArgumentError, "expected finite strengths of at least 0 for names"),
        ({"foreign_penalties.spectral_norm": {"power": 2}}, TypeError, "the number under 'strength'"),
        ({"foreign_penalties.spectral_norm": "0.1"}, TypeError, "expected a number for each penalty"),
        (
            {"foreign_penalties.spectral_norm": {"strength": 1.0, "powers": 2}},
            lf.ArgumentError,
            "unexpected keyword argument 'powers'; expected the arguments of spectral_norm(weight, power=1)",
        ),
        ({"foreign_penalties.Distance": {"strength": 1.0, "p": 2}}, lf.ArgumentError, "Distance(power: float = 2.0)"),
        ({partial(first_difference, squared=False): 1.0}, TypeError, "expected a name, a dotted path, a function or"),
        (["nuclear_norm"], TypeError, "expected strengths by name, for example {'nuclear_norm': 1e-3}"),
    ],
)
def test_wrong_penalties_are_refused(foreign, penalties, error, message):
    with pytest.raises(error, match=re.escape(message)) as found:
        Smoothness(penalties)
    assert isinstance(found.value, lf.LightningFoldError) and str(found.value).startswith("Smoothness(penalties=")


def test_a_value_that_is_not_one_number_is_refused(foreign):
    expected = (
        r"Smoothness\(penalties=\{'foreign_penalties.vector': ...\}\): gives a tensor of shape \(5,\) for a weight"
    )
    with pytest.raises(TypeError, match=expected):
        gradient(Smoothness({"foreign_penalties.vector": 1.0}))


@pytest.mark.parametrize("own", [False, True], ids=["callback", "regularizers"])
def test_yaml_names_one_with_its_arguments(foreign, tmp_path, monkeypatch, own):
    """In a whole run, overridden from the command line, and in the checkpoint of a module that holds it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-fold"])
    penalties = {"foreign_penalties.Distance": {"strength": 0.1, "power": 1.5}, "foreign_penalties.spectral_norm": 0.2}
    kind = "regularizers.Smoothness" if own else "callbacks.SmoothnessRegularization"
    entry = {"class_path": f"lightning_fold.{kind}", "init_args": {"penalties": penalties, "every": 1}}
    trainer = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    network = {
        "network": "lightning_fold.models.MLP",
        "network_args": {"in_features": 64, "hidden": [8], "out_features": 10},
    }
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    config = {
        "trainer": {**trainer, **quiet, "callbacks": [] if own else [entry]},
        "model": {
            "class_path": "lightning_fold.modules.Classifier",
            "init_args": {**network, "optimizer": optimizer, **({"regularizers": [entry]} if own else {})},
        },
        "data": {"class_path": "lightning_fold.data.DigitsDataModule", "init_args": {"batch_size": 32}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    more = [] if own else ["--trainer.callbacks.penalties.nuclear_norm", "0.4"]
    main(["fit", "--config", "run.yaml", *more])
    stored = torch.load(next(tmp_path.rglob("epoch*.ckpt")), weights_only=True)
    if own:
        (held,) = stored["hyper_parameters"]["regularizers"]
        assert held["init_args"]["penalties"] == penalties
    else:
        (key,) = (key for key in stored["callbacks"] if key.startswith("SmoothnessRegularization"))
        assert "foreign_penalties.Distance" in key and "'nuclear_norm': 0.4" in key
