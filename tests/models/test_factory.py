import pytest
import torch
import torchvision
from torch import nn

from lightning_fold.models import MLP, build_network


def test_class_path_gives_that_class_with_those_arguments():
    torch.manual_seed(0)
    built = build_network("lightning_fold.models.MLP", {"in_features": 4, "hidden": [3], "out_features": 2})
    torch.manual_seed(0)
    direct = MLP(4, [3], 2)
    assert type(built) is MLP
    torch.testing.assert_close(built.state_dict(), direct.state_dict())


def test_function_path_gives_what_the_function_returns():
    assert isinstance(
        build_network("torchvision.models.squeezenet1_1", {"num_classes": 3}), torchvision.models.SqueezeNet
    )


@pytest.mark.parametrize("name", ["resnet10t", "timm/resnet10t", "resnet10t.c3_in1k"])
def test_timm_name_gives_that_model(name):
    network = build_network(name, {"num_classes": 5, "in_chans": 1})
    assert network(torch.randn(1, 1, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnet10", "resnet10t"),
        ("lightning_fold.models.MPL", "did you mean|Did you mean 'MLP'"),
        ("lightning_fold.modles.MLP", "cannot import 'lightning_fold.modles'"),
        ("nowhere.Network", "dotted class path"),
        ("torch.pi", "found 3.14"),
        ("collections.Counter", "expected an nn.Module class"),
        ("os.mkdir", "expected an nn.Module class"),
        ("subprocess.run", "def build"),
    ],
)
def test_unknown_name_is_refused_with_advice(network, message):
    with pytest.raises(ValueError, match=message):
        build_network(network, {})


@pytest.mark.parametrize("arguments", [{"in_features": 4}, {"in_features": 4, "hidden": [], "out_features": 2, "b": 1}])
def test_wrong_arguments_are_refused_with_those_accepted(arguments):
    with pytest.raises(TypeError, match="accepts in_features, hidden, out_features, activation"):
        build_network("lightning_fold.models.MLP", arguments)


def test_argument_refused_inside_timm_is_named():
    with pytest.raises(TypeError, match=r"build_network.*in_channels"):
        build_network("resnet10t", {"in_channels": 1})


def test_only_functions_that_say_they_return_a_network_are_called():
    assert isinstance(build_network(f"{__name__}.annotated", {}), nn.ReLU)
    with pytest.raises(ValueError, match="annotated to return one"):
        build_network(f"{__name__}.unannotated", {})


def annotated() -> nn.ReLU:
    return nn.ReLU()


def unannotated():
    raise AssertionError("must not be called")


def test_a_builder_that_returns_a_module_is_used_as_it_is():
    assert isinstance(build_network("torch.nn.Linear", {"in_features": 1, "out_features": 2}), nn.Linear)
