"""The example of an existing project: the same with one more callback, and a smaller network at its end."""

import runpy
from difflib import unified_diff
from pathlib import Path

import lightning
import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits

from lightning_fold.complexity import count_parameters
from lightning_fold.data import ImageFolderDataModule
from lightning_fold.storage.checkpoints import record_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run an example in an empty folder, on a few batches."""
    monkeypatch.chdir(tmp_path)
    build = lightning.Trainer
    limits = {"limit_train_batches": 2, "limit_val_batches": 1, "enable_progress_bar": False, "logger": False}
    monkeypatch.setattr(lightning, "Trainer", lambda **arguments: build(**arguments, **limits))
    return lambda name: runpy.run_path(str(EXAMPLES / name))["main"]()


def test_the_project_goes_on_as_it_was_and_ends_smaller(run):
    before, after = run("plain_project.py"), run("compressed_project.py")
    assert count_parameters(after.lightning_module) < 0.8 * count_parameters(before.lightning_module)
    assert record_of(after.lightning_module).dense.parameters == count_parameters(before.lightning_module.backbone)
    checkpoint = next(callback for callback in after.callbacks if isinstance(callback, ModelCheckpoint))
    assert Path(checkpoint.best_model_path).is_file() and "val_acc" in after.callback_metrics
    assert after.global_step == before.global_step


def test_one_callback_is_all_that_differs():
    before, after = ((EXAMPLES / f"{name}_project.py").read_text() for name in ("plain", "compressed"))
    changes = [line[1:].strip() for line in unified_diff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    callback = 'SqueezeRelease(dense_epochs=4, cycles=3, sparsity=[0.4], monitor="val_acc"),'
    assert "from lightning_fold.callbacks import SqueezeRelease" in changes and callback in changes
    assert len([line for line in changes if "monitor=" in line]) == 3  # two of them: which checkpoint is the best
    assert not [line for line in changes if "def " in line or "training_step" in line]


def test_image_folder_holds_images_of_the_dataset_once_each(tmp_path):
    """Equally many of each class, in the folder of their class; no test image among those to train on."""
    example = runpy.run_path(str(EXAMPLES / "image_folder.py"))
    example["main"](str(tmp_path / "images"), source="digits", train=60, val=20, test=40)
    module = ImageFolderDataModule(str(tmp_path / "images"), augment=False)
    pixels, targets = load_digits(return_X_y=True)
    whole = [image.astype(int).tobytes() for image in pixels]
    known = {image: (target, place) for place, (image, target) in enumerate(zip(whole, targets, strict=True))}
    places = set()
    for split, count in zip(module.splits, (6, 2, 4), strict=True):
        found = [(np.asarray(image)[..., 0], target) for image, target in split.samples]
        assert np.bincount([target for _, target in found]).tolist() == [count] * 10
        for image, target in found:
            digit, place = known[np.rint(image / (255 / 16)).astype(int).tobytes()]
            assert digit == target and (place >= 1297) == (split is module.splits.test)
            places.add(place)
    assert len(places) == 120
    with pytest.raises(ValueError, match="is not empty"):
        example["main"](str(tmp_path / "images"), source="digits")
    with pytest.raises(ValueError, match="at most 500"):
        example["main"](str(tmp_path / "more"), source="digits", train=60, val=20, test=501)
