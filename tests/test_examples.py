"""The example of an existing project: the same with one more callback, and a smaller network at its end."""

import runpy
from difflib import unified_diff
from pathlib import Path

import lightning
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_fold.checkpointing import follow
from lightning_fold.complexity import count_parameters

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
    assert follow(after.lightning_module).dense.parameters == count_parameters(before.lightning_module.backbone)
    checkpoint = next(callback for callback in after.callbacks if isinstance(callback, ModelCheckpoint))
    assert Path(checkpoint.best_model_path).is_file() and "val_acc" in after.callback_metrics
    assert after.global_step == before.global_step


def test_one_callback_is_all_that_differs():
    before, after = ((EXAMPLES / f"{name}_project.py").read_text() for name in ("plain", "compressed"))
    changes = [line[1:].strip() for line in unified_diff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    callback = 'SqueezeRelease(dense_epochs=4, cycles=3, sparsity=[0.4], monitor="val_acc"),'
    assert "from lightning_fold.callbacks import SqueezeRelease" in changes and callback in changes
    assert not [line for line in changes if "def " in line or "training_step" in line]
