"""Files name classes by their public paths, so private modules may move."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.class_paths import class_path, names_class
from lightning_fold.layers import CompensatedLayerNorm
from lightning_fold.models import MLP, CifarResNet
from lightning_fold.modules import Classifier


class Local(nn.Module):
    """A class that only its own module knows."""


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (nn.Linear, "torch.nn.Linear"),
        (torch.optim.SGD, "torch.optim.SGD"),
        (Classifier, "lightning_fold.modules.Classifier"),
        (CifarResNet, "lightning_fold.models.CifarResNet"),
        (CompensatedLayerNorm, "lightning_fold.layers.CompensatedLayerNorm"),
        (Local, f"{__name__}.Local"),
    ],
)
def test_public_path(kind: type, path: str) -> None:
    assert class_path(kind) == path
    assert names_class(path, kind)
    assert names_class(f"{kind.__module__}.{kind.__qualname__}", kind)  # as older files have it
    assert not names_class(path, MLP)


def test_nothing_is_imported_for_a_path() -> None:
    assert "antigravity" not in sys.modules
    assert not names_class("antigravity.fly", nn.Linear)
    assert "antigravity" not in sys.modules


def test_checkpoints_hold_public_paths() -> None:
    module = Classifier(
        network="lightning_fold.models.MLP", network_args={"in_features": 4, "hidden": [8], "out_features": 2}
    )
    assert module.hparams["_class_path"] == "lightning_fold.modules.Classifier"
    types = {entry["type"] for entry in lf.describe(module.network).values()}
    assert "lightning_fold.models.MLP" in types and not any("modules.linear" in name for name in types)


def _write_package(folder: Path, private: str) -> None:
    package = folder / "moving_house"
    package.mkdir(exist_ok=True)
    for old in package.glob("*.py"):
        old.unlink()
    (package / "__init__.py").write_text(f"from moving_house.{private} import Net\n")
    (package / f"{private}.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )


def test_a_file_outlives_the_move_of_a_private_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    _write_package(tmp_path, "old_room")
    import moving_house  # pyright: ignore[reportMissingImports]

    network, images = moving_house.Net(), torch.randn(3, 4)
    with torch.no_grad():
        network[0].weight[::2] = network[0].bias[::2] = 0
    lf.minimize(network, images)
    lf.save(network, tmp_path / "small.pt", network="moving_house.Net")
    for name in [name for name in sys.modules if name.partition(".")[0] == "moving_house"]:
        del sys.modules[name]
    _write_package(tmp_path, "new_room")
    loaded = lf.load(tmp_path / "small.pt")
    assert type(loaded).__module__ == "moving_house.new_room"
    torch.testing.assert_close(loaded(images), network.eval()(images), rtol=0, atol=0)
