import re
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision

from lightning_fold.data import CIFAR10DataModule
from lightning_fold.models import CifarResNet
from lightning_fold.models.cifar_resnet import BasicBlock, PaddedShortcut

TRAINED = [("resnet20-12fca82f.th", 20, 0.915), pytest.param("resnet32-d509ac18.th", 32, 0.925, marks=pytest.mark.slow)]


def published(depth):
    """Parameters of option A: 3 x 3 convolutions two BatchNorm vectors each, a linear layer."""
    n = (depth - 2) // 6
    widths = [3, 16] + [16] * (2 * n) + [32] * (2 * n) + [64] * (2 * n)
    convolutions = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    return convolutions + 64 * 10 + 10


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_has_the_published_number_of_parameters(depth):
    assert sum(parameter.numel() for parameter in CifarResNet(depth).parameters()) == published(depth)


def test_four_stages_are_resnet_18():
    """torchvision's, but for the 3 x 3 stem; and the same output from the same weights."""
    torch.manual_seed(0)
    network = CifarResNet(18, widths=(64, 128, 256, 512), shortcut="B").eval()
    reference = torchvision.models.resnet18(num_classes=10).eval()
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = torch.nn.Identity()
    renamed = {
        key.replace("shortcut", "downsample").replace("linear", "fc"): v for key, v in network.state_dict().items()
    }
    reference.load_state_dict(renamed)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x), reference(x))


def test_preactivation_is_preact_resnet_18():
    """timm's, but for the 3 x 3 stem without pooling; and the same output from the same weights."""
    torch.manual_seed(0)
    network = CifarResNet(18, widths=(64, 128, 256, 512), shortcut="B", preactivation=True).eval()
    reference = timm.create_model("resnetv2_18", num_classes=10).eval()
    reference.stem = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    renamed = {_timm_name(key): value for key, value in network.state_dict().items()}
    renamed["head.fc.weight"] = renamed["head.fc.weight"][:, :, None, None]
    reference.load_state_dict(renamed)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x), reference(x))


def _timm_name(key):
    if key.startswith("bn1."):
        return key.replace("bn1", "norm")
    key = key.replace(".bn", ".norm").replace("shortcut.0", "downsample.conv").replace("linear", "head.fc")
    key = re.sub(r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.blocks.", key)
    return "stem.weight" if key == "conv1.weight" else key


@pytest.mark.parametrize("preactivation", [False, True])
def test_stem_with_a_stride_gives_every_second_place(preactivation):
    """The same weights on images half as large: what the stem of stride 1 gives there, subsampled."""
    torch.manual_seed(0)
    arguments = {"depth": 8, "widths": (4, 6, 9), "shortcut": "B", "preactivation": preactivation}
    network, strided = CifarResNet(**arguments).eval(), CifarResNet(**arguments, stem_stride=2).eval()
    strided.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 9, 12)
    network.conv1.register_forward_hook(lambda module, inputs, output: output[:, :, ::2, ::2])
    torch.testing.assert_close(strided(x), network(x))


def test_padded_shortcut_is_a_fixed_sparse_convolution():
    x = torch.randn(2, 4, 5, 6)
    weight = torch.zeros(9, 4, 1, 1)
    weight[torch.arange(4) + 2, torch.arange(4)] = 1.0
    torch.testing.assert_close(PaddedShortcut(2, 3, 2)(x), F.conv2d(x, weight, stride=2))


@pytest.mark.parametrize("option", ["A", "B"])
def test_block_adds_its_shortcut(option):
    block = BasicBlock(4, 6, 2, option).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), F.relu(block.shortcut(x)))


@pytest.mark.parametrize("size", [8, 28, 33])
def test_takes_any_image_size_and_channels(size):
    network = CifarResNet(8, num_classes=7, in_channels=1, widths=(4, 6, 9), shortcut="B")
    assert network(torch.randn(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18}, "6 n"),
        ({"depth": 2}, "6 n"),
        ({"widths": (8, 16), "depth": 8}, "4 n"),
        ({"widths": ()}, "one integer of at least 1 for each stage"),
        ({"widths": (8, 0, 8)}, "one integer of at least 1 for each stage"),
        ({"shortcut": "C"}, "'A' or 'B'"),
        ({"stem_stride": 0}, "stem_stride must be at least 1"),
        ({"widths": (8, 4, 2)}, "do not decrease"),
    ],
)
def test_refuses_what_it_cannot_build(arguments, message):
    with pytest.raises(ValueError, match=message):
        CifarResNet(**arguments)


@pytest.mark.parametrize(("file", "depth", "accuracy"), TRAINED)
def test_checkpoint_trained_elsewhere_keeps_its_accuracy(real_data, file, depth, accuracy):
    weights = torch.load(real_data / "checkpoints" / file, map_location="cpu", weights_only=True)["state_dict"]
    network = CifarResNet(depth).eval()
    network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    test = CIFAR10DataModule(str(real_data), download=False).splits.test
    images, targets = test.__getitems__(range(1000))
    with torch.inference_mode():
        right = sum(
            (network(x).argmax(1) == y).sum().item() for x, y in zip(images.split(250), targets.split(250), strict=True)
        )
    assert right / 1000 >= accuracy
