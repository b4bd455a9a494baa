"""save and load: one file, complete or refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import lightning_fold as lf
from lightning_fold.models import CifarResNet

NETWORK = "lightning_fold.models.CifarResNet"
ARGUMENTS = {"depth": 8, "num_classes": 4, "widths": [6, 8, 11]}


def _compressed(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = CifarResNet(**ARGUMENTS).eval().to(dtype), torch.randn(3, 3, 8, 8).to(dtype)
    lf.prune(model, x, keep=0.7, of="channels")
    lf.factorize(model, x, keep=0.9)
    return model, x


def test_loads_in_a_new_process(tmp_path: Path) -> None:
    model, x = _compressed()
    lf.save(model, tmp_path / "small.ckpt", network=NETWORK, network_args=ARGUMENTS)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch, lightning_fold as lf\n"
        "torch.set_num_threads(1)\n"
        "model = lf.load(sys.argv[1] + '/small.ckpt')\n"
        "torch.save((model(torch.load(sys.argv[1] + '/x.pt')).detach(), model.training), sys.argv[1] + '/y.pt')\n"
    )
    root = str(Path(lf.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | {"PYTHONPATH": root})
    found, training = torch.load(tmp_path / "y.pt")
    assert torch.equal(found, model(x).detach()) and training is False


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_of_the_tensors_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    model, x = (
        _compressed(dtype) if dtype == torch.float64 else (_compressed()[0].to(dtype), _compressed()[1].to(dtype))
    )
    lf.save(model, tmp_path / "small.ckpt", network=NETWORK, network_args=ARGUMENTS)
    assert torch.equal(lf.load(tmp_path / "small.ckpt")(x), model(x))


def test_pretrained_weights_are_asked_for_once(tmp_path: Path, downloads: list[str]) -> None:
    """The file holds the values, so reading it needs no network connection."""
    arguments = {"pretrained": True, "num_classes": 3, "img_size": 32}
    model = lf.models.build_network("timm/test_vit", arguments).eval()
    assert downloads == ["test_vit"] and bool((model.head.bias == 0.25).all())
    for suffix in (".pt", ".safetensors"):
        lf.save(model, tmp_path / f"network{suffix}", network="timm/test_vit", network_args=arguments)
        loaded = lf.load(tmp_path / f"network{suffix}")
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert downloads == ["test_vit"]


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    model, _ = _compressed()
    path = tmp_path / "small.ckpt"
    lf.save(model, path, network=NETWORK, network_args=ARGUMENTS)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        lf.load(tmp_path / "none.ckpt")
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated"):
            lf.load(path)
    path.write_text("lightning: false\n")
    with pytest.raises(ValueError, match="another program wrote it"):
        lf.load(path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"found a file with the keys \['epoch', 'state_dict'\]"):
        lf.load(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="contains a list"):
        lf.load(path)


def test_file_of_another_network(tmp_path: Path) -> None:
    model, _ = _compressed()
    lf.save(model, tmp_path / "x.ckpt", network=NETWORK, network_args={"depth": 14, "num_classes": 4})
    with pytest.raises(ValueError, match="expected the structure of the same network"):
        lf.load(tmp_path / "x.ckpt")


def test_failing_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = _compressed()
    path = tmp_path / "small.ckpt"
    lf.save(model, path, network=NETWORK, network_args=ARGUMENTS)
    whole = path.read_bytes()

    def full(content: object, partial: Path) -> None:
        Path(partial).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"could not be written.*no space left"):
        lf.save(model, path, network=NETWORK, network_args=ARGUMENTS)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        lf.save(
            nn.Linear(2, 2),
            tmp_path / "file" / "x.ckpt",
            network="torch.nn.Linear",
            network_args={"in_features": 2, "out_features": 2},
        )


class Scaled(nn.Module):
    """Has a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((3,), 0.5), persistent=False)

    def forward(self, x):
        return self.linear(x) * self.scale


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_type_of_buffers_that_no_state_dict_holds(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("safetensors", reason="needs the extra export")
    model, batch, path = Scaled().bfloat16(), torch.randn(5, 4, dtype=torch.bfloat16), tmp_path / f"x.{suffix}"
    lf.save(model, path, network=f"{__name__}.Scaled")
    assert torch.equal(lf.load(path)(batch), model(batch))


def test_wrappers_stay_out_of_the_file(tmp_path: Path) -> None:
    model, x = _compressed()
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        lf.save(wrapped, tmp_path / "x.pt", network=NETWORK, network_args=ARGUMENTS)
        assert torch.equal(lf.load(tmp_path / "x.pt")(x), model(x))


def test_masks_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    model = CifarResNet(**ARGUMENTS)
    prune.random_unstructured(model.conv1, "weight", 0.5)
    with pytest.raises(ValueError, match=r"save\(CifarResNet\): the network has masks of torch.nn.utils.prune"):
        lf.save(model, tmp_path / "x.pt", network=NETWORK, network_args=ARGUMENTS)
    assert not list(tmp_path.iterdir())


def unannotated():
    return CifarResNet(**ARGUMENTS)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("network", "arguments"),
    [("nope.foo", {}), (f"{__name__}.unannotated", {}), (NETWORK, {"depth": 8, "q": 1}), ("torch.nn.Linear", {})],
)
def test_what_builds_no_network_is_refused_before_a_file_is_written(
    tmp_path: Path, suffix: str, network: str, arguments: dict[str, int]
) -> None:
    """With the error of ``build_network``, which reads the file later; an older file stays."""
    pytest.importorskip("safetensors", reason="needs the extra export")
    path = tmp_path / f"x.{suffix}"
    path.write_text("older")
    with pytest.raises((ValueError, TypeError)) as expected:
        lf.models.build_network(network, arguments)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        lf.save(CifarResNet(**ARGUMENTS), path, network=network, network_args=arguments)
    assert path.read_text() == "older"
