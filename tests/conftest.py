"""Fixtures shared by all tests."""

import os
import runpy
from pathlib import Path

import pytest
import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # tests run side by side, one per core


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with MNIST, CIFAR-10 and trained checkpoints, as torchvision lays them out."""
    folder = Path(os.environ.get("LIGHTNING_FOLD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set LIGHTNING_FOLD_DATA to a folder that holds MNIST and CIFAR-10")
    return folder


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """The networks for which timm asks for pretrained weights from now on; their biases become 0.25, nothing else."""
    asked = []

    def load(model, pretrained_cfg, **_):
        asked.append(pretrained_cfg["architecture"])
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.constant_(parameter, 0.25)

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    return asked


@pytest.fixture
def recipes_in(tmp_path, monkeypatch):
    """Go to an empty folder that holds ``configs/``, every recipe shortened to a few batches, and ``data/``."""
    for recipe in sorted((REPOSITORY / "configs").rglob("*.yaml")):
        copy = tmp_path / recipe.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(yaml.safe_dump(shortened(yaml.safe_load(recipe.read_text()))))
    write = runpy.run_path(str(REPOSITORY / "examples" / "image_folder.py"))["main"]
    write(str(tmp_path / "images"), source="digits", train=80, val=20, test=20)
    data = Path(os.environ.get("LIGHTNING_FOLD_DATA", REPOSITORY.parent / "shared" / "data"))
    if data.is_dir():
        (tmp_path / "data").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-fold"])
    return tmp_path


def shortened(recipe: dict) -> dict:
    """A recipe with at most two cycles, one epoch for each phase and two batches for each epoch."""
    short = _shorten(recipe)
    trainer = short["trainer"]
    limits = {f"limit_{split}_batches": 2 for split in ("train", "val", "test")}
    trainer.update(limits, max_epochs=7, enable_progress_bar=False, enable_model_summary=False)
    return short


# The values that make a run short, by the name of the argument in a recipe.
_SHORT = {
    "dense_epochs": lambda value: 1,
    "shrink_epochs": lambda value: min(value, 1),
    "masked_epochs": lambda value: 1,
    "cycles": lambda value: min(value, 2),
    "at_epoch": lambda value: min(value, 6),
    "max_accuracy_drop": lambda value: 1.0,
    "epochs": lambda value: [1 for _ in value],
    "batch_size": lambda value: 16,
    "context": lambda value: 16,
    "num_hidden_layers": lambda value: min(value, 2),
    "download": lambda value: False,
    "num_workers": lambda value: 0,
}


def _shorten(value):
    if isinstance(value, dict):
        if value.get("pretrained"):  # no download, and no more blocks than a CPU trains in a minute
            value = value | {"pretrained": False, "depth": 2}
        return {key: _SHORT[key](item) if key in _SHORT else _shorten(item) for key, item in value.items()}
    return [_shorten(item) for item in value] if isinstance(value, list) else value
