import sys
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
@needs_safetensors
def test_command_exports_a_compressed_file_without_its_run(run, trained, tmp_path, capsys):
    run(
        "compress",
        "--checkpoint",
        trained / "checkpoints" / "last.ckpt",
        "--keep",
        "0.5",
        "--of",
        "channels",
        "--output",
        "small.ckpt",
    )
    small, batch = lf.load("small.ckpt"), torch.rand(3, 1, 8, 8)
    for kind in ("onnx", "pt2", "safetensors"):
        run("export", "--checkpoint", "small.ckpt", "--format", kind, "--output", f"small.{kind}")
        assert f"small.{kind}  {kind}, {(tmp_path / f'small.{kind}').stat().st_size:,} bytes" in capsys.readouterr().out
    torch.testing.assert_close(torch.export.load("small.pt2").module()(batch), small(batch))
    torch.testing.assert_close(lf.load("small.safetensors").state_dict(), small.state_dict())


def test_network_that_says_everything_needs_no_configuration(run, mistake, network, tmp_path):
    """What stands beside it may be of something else; a program that was exported is read by no command."""
    example = torch.zeros(1, 3, 8, 8)
    lf.save(network, tmp_path / "small.pt", network=NAME, network_args=ARGUMENTS, example_inputs=example)
    (tmp_path / "config.yaml").write_text("data: {class_path: lightning_fold.data.CIFAR10DataModule, init_args: {}}")
    run("export", "--checkpoint", "small.pt", "--output", "small.pt2")
    batch = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(torch.export.load("small.pt2").module()(batch), network(batch))
    error, _ = mistake("export", "--checkpoint", "small.pt2", "--output", "again.onnx")
    assert "'small.pt2': a .pt2 program is final; expected .ckpt, .pt, .safetensors" in error


def test_mistakes_of_the_command(mistake, trained, monkeypatch):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    assert "ending in .onnx" in mistake("export", "--checkpoint", checkpoint, "--output", "small.tflite")[0]
    monkeypatch.setattr("lightning_fold.extras.find_spec", lambda name: None)
    error, _ = mistake("export", "--checkpoint", checkpoint, "--output", "small.onnx")
    assert "pip install 'lightning-fold[export]'" in error
    assert "required" in mistake("export", "--checkpoint", checkpoint)[0]
    assert sys.argv == ["lightning-fold"]
