"""Files that are written from one device are read on another."""

import pytest
import torch

import lightning_fold as lf
from benchmarks.gpu_parts.sizes import size
from lightning_fold.models import CifarResNet
from tests import zoo

ARGUMENTS = {"depth": 8, "widths": [8, 12, 16], "shortcut": "B"}


@pytest.fixture
def compressed(device):
    """A network on the device, factorized there, and images."""
    torch.manual_seed(0)
    model = CifarResNet(**ARGUMENTS).eval()
    zoo.randomise(model)
    model, images = model.to(device), torch.randn(4, 3, 16, 16, device=device)
    lf.factorize(model, images, **size(0.6))
    return model, images


def test_saved_on_one_device_loaded_on_another(device, compressed, tmp_path):
    model, images = compressed
    lf.save(model, tmp_path / "small.pt", network="lightning_fold.models.CifarResNet", network_args=ARGUMENTS)
    loaded = lf.load(tmp_path / "small.pt")
    assert {value.device.type for value in loaded.state_dict().values()} == {"cpu"}
    assert {value.device.type for value in model.state_dict().values()} == {device.type}
    expected = zoo.run(model, (images,)).cpu()
    torch.testing.assert_close(zoo.run(loaded, (images.cpu(),)), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(zoo.run(loaded.to(device), (images,)).cpu(), expected)


@pytest.mark.parametrize("kind", ["pt2", "safetensors", "onnx"])
def test_export_from_the_device(device, compressed, tmp_path, kind):
    for module in {"onnx": ("onnx", "onnxruntime", "onnxscript"), "safetensors": ("safetensors",)}.get(kind, ()):
        pytest.importorskip(module)
    model, images = compressed
    network = {"network": "lightning_fold.models.CifarResNet", "network_args": ARGUMENTS}
    report = lf.export(model, images, tmp_path / f"small.{kind}", **(network if kind == "safetensors" else {}))
    assert report.max_relative_error < 1e-4
    assert {value.device.type for value in model.state_dict().values()} == {device.type}
    if kind != "onnx":
        loaded = lf.load(tmp_path / f"small.{kind}", trusted=True)
        expected = zoo.run(model, (images,)).cpu()
        torch.testing.assert_close(zoo.run(loaded, (images.cpu(),)), expected, rtol=1e-3, atol=1e-3)
