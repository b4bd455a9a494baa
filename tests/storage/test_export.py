import json
from importlib.util import find_spec as real_find_spec

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.models import CifarResNet

ARGUMENTS = {"depth": 8, "num_classes": 4, "widths": [6, 8, 11]}
NAME = "lightning_fold.models.CifarResNet"
needs_onnx = pytest.mark.skipif(not real_find_spec("onnxruntime"), reason="onnxruntime is not installed")
needs_safetensors = pytest.mark.skipif(not real_find_spec("safetensors"), reason="safetensors is not installed")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = CifarResNet(**ARGUMENTS).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    lf.prune(model, torch.randn(2, 3, 8, 8), keep=0.7, of="channels")
    return model


@needs_onnx
def test_onnx_gives_the_outputs_for_any_batch(network, tmp_path):
    import onnxruntime

    report = lf.export(network, torch.randn(1, 3, 8, 8), tmp_path / "small.onnx")
    assert report.bytes == (tmp_path / "small.onnx").stat().st_size and report.max_relative_error < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 5):
        batch = torch.randn(size, 3, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(batch).detach(), rtol=1e-4, atol=1e-5)


def test_program_gives_the_outputs_for_any_batch(network, tmp_path):
    lf.export(network, torch.randn(1, 3, 8, 8), tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2").module()
    for size in (1, 5):
        batch = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(program(batch), network(batch))


@needs_safetensors
def test_safetensors_hold_the_structure_in_their_metadata(network, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "small.safetensors"
    lf.export(network, torch.randn(1, 3, 8, 8), path, network=NAME, network_args=ARGUMENTS)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["lightning_fold"])
        torch.testing.assert_close(file.get_tensor("conv1.weight"), network.conv1.weight.detach())
    assert metadata["structure"] == lf.describe(network) and metadata["network"] == NAME
    batch = torch.randn(3, 3, 8, 8)
    assert torch.equal(lf.load(path)(batch), network(batch))


def test_two_inputs_share_the_batch(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    model, inputs = Two(), (torch.randn(2, 3), torch.randn(2, 2))
    lf.export(model, inputs, tmp_path / "two.pt2")
    more = (torch.randn(5, 3), torch.randn(5, 2))
    torch.testing.assert_close(torch.export.load(tmp_path / "two.pt2").module()(*more), model(*more))


def test_network_is_left_alone(network, tmp_path):
    model = CifarResNet(**ARGUMENTS).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lf.export(model, torch.randn(2, 3, 8, 8), tmp_path / "x.pt2")
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).reshape(2, 4)


@pytest.mark.parametrize(
    ("model", "path", "arguments", "expected"),
    [
        (FixedBatch(), "x.pt2", {}, "cannot trace it for batches of any size"),
        (nn.Linear(4, 4), "x.tflite", {}, r"x\.tflite'\): expected a path ending in \.onnx, \.pt2 or \.safetensors\."),
        (nn.Linear(4, 4), "x.pt2", {"format": "onnx"}, r"expected a path ending in \.onnx for format='onnx'\."),
        (nn.Linear(4, 4), "x.onnx", {"format": "onxx"}, r"export\(format='onxx'\): expected one of 'onnx', 'pt2', "),
        (nn.Linear(4, 4), "x.safetensors", {}, "expected network="),
    ],
)
def test_mistakes(tmp_path, model, path, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        lf.export(model, torch.randn(2, 4), tmp_path / path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_file_that_differs_is_not_put_in_place(network, tmp_path, monkeypatch):
    (tmp_path / "x.pt2").write_text("old")
    other = CifarResNet(**ARGUMENTS).eval()
    monkeypatch.setattr("lightning_fold.storage.export.load", lambda path, trusted: other)
    with pytest.raises(ValueError, match=r"the file's outputs have a relative error of .* for a batch of 2"):
        lf.export(network, torch.randn(2, 3, 8, 8), tmp_path / "x.pt2")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x.pt2", "old")]


def test_missing_extra_names_the_command_that_installs_it(network, tmp_path, monkeypatch):
    def find_spec(name, *rest):
        return None if name in ("onnxruntime", "safetensors") else real_find_spec(name, *rest)

    monkeypatch.setattr("lightning_fold.extras.find_spec", find_spec)
    for path, package in (("x.onnx", "onnxruntime"), ("x.safetensors", "safetensors")):
        with pytest.raises(ModuleNotFoundError, match=rf"needs {package}: pip install 'lightning-fold\[export\]'"):
            lf.export(network, torch.randn(2, 3, 8, 8), tmp_path / path, network=NAME, network_args=ARGUMENTS)


class Guess(nn.Module):
    """Says which class, and how sure it is."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        logits = self.linear(x)
        return logits.argmax(1), logits


@pytest.mark.parametrize("kind", ["pt2", pytest.param("onnx", marks=needs_onnx)])
def test_outputs_that_are_no_floats(tmp_path, kind):
    model, path = Guess(), tmp_path / f"guess.{kind}"
    report = lf.export(torch.compile(model), torch.randn(2, 4), path)  # what stands around it stays out
    assert report.max_relative_error < 1e-5
    batch = torch.randn(5, 4)
    if kind == "pt2":
        found, _ = torch.export.load(path).module()(batch)
        assert torch.equal(found, model(batch)[0])


@needs_onnx
def test_onnx_of_more_than_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_fold.storage.export._ONNX_BYTES", 59)
    with pytest.raises(ValueError, match=r"found 60 bytes of weights, expected at most 59"):
        lf.export(Guess(), torch.randn(2, 4), tmp_path / "guess.onnx")
    assert not list(tmp_path.iterdir())
