"""Output that is no terminal gets a line an epoch, and no progress bar."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import yaml

from lightning_fold.callbacks import LowRankFactorization
from lightning_fold.cli import main
from lightning_fold.commands.fit.epoch_lines import EpochLines, duration
from lightning_fold.commands.fit.training import FoldCLI
from tests.callbacks.projects import loader, project

ROOT = Path(__file__).resolve().parents[3]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
CONFIG = {
    "model": {"init_args": {"network_args": {"in_features": 64, "hidden": [20], "out_features": 10}}},
    "data": {"class_path": "lightning_fold.data.DigitsDataModule"},
    "trainer": {
        "max_epochs": 3,
        "accelerator": "cpu",
        "enable_model_summary": False,
        "callbacks": [
            {
                "class_path": "lightning_fold.callbacks.LowRankFactorization",
                "init_args": {"keep": 0.6, "at_epoch": 1},
            }
        ],
    },
}


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]


def fit(*callbacks, module=None, validation=True, **arguments):
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[EpochLines(), *callbacks], **{**QUIET, **arguments})
    trainer.fit(module or project(), loader(), loader() if validation else None)


def run(folder, *arguments):
    """Standard output and error of ``lightning-fold fit`` in a process whose output is a pipe."""
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from lightning_fold.cli import main; main()"
    command = [sys.executable, "-c", code, "fit", "--config", "config.yaml", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_piped_run(tmp_path):
    shown = run(tmp_path)
    found = [line for line in shown.splitlines() if line.startswith("epoch")]
    sizes = ["1,510 parameters (1.00x)", "902 parameters (1.67x)", "902 parameters (1.67x)"]
    for epoch, (line, size) in enumerate(zip(found, sizes, strict=True), start=1):
        metrics = r"loss/train \d\.\d+  accuracy/val 0\.\d+"
        times = r"(\d+ min )?[\d.]+ s  (\d+ min )?[\d.]+ s left"
        assert re.fullmatch(rf"epoch {epoch} of 3  {metrics}  {re.escape(size)}  {times}", line)
    assert "Epoch 2/2" not in shown and "\x1b" not in shown  # Lightning's bar
    assert "enable_progress_bar: null" in (tmp_path / "runs" / "version_0" / "config.yaml").read_text()


def test_a_bar_that_is_asked_for_is_shown_and_one_batch_is_no_epoch(tmp_path):
    assert "Epoch 2/2" in run(tmp_path, "--trainer.enable_progress_bar", "true")
    assert "epoch 1 of" not in run(tmp_path, "--trainer.fast_dev_run", "true")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_keeps_the_bar(tmp_path, monkeypatch, terminal):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    built = []
    monkeypatch.setattr(FoldCLI, "_run_subcommand", lambda self, name: built.append(self.trainer))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])
    main(["fit", "--config", "config.yaml"])
    (trainer,) = built
    assert (trainer.progress_bar_callback is not None) == terminal
    assert any(isinstance(callback, EpochLines) for callback in trainer.callbacks) == (not terminal)


def test_metrics_of_another_epoch_are_left_out(capsys):
    fit(max_epochs=4, check_val_every_n_epoch=2)
    assert ["accuracy/val" in line for line in lines(capsys)] == [False, True, False, True]


def test_module_that_logs_nothing(capsys):
    fit(LowRankFactorization(keep=0.6, at_epoch=1), max_epochs=2, validation=False)
    first, second = lines(capsys)
    assert re.fullmatch(r"epoch 1 of 2  [\d,]+ parameters \(1\.00x\)  [\d.]+ s  [\d.]+ s left", first)
    assert "(1.00x)" not in second


def test_runs_without_a_last_epoch_name_none(capsys):
    fit(max_steps=7, max_epochs=-1)
    found = lines(capsys)
    assert found[0].startswith("epoch 1  ") and not any(" left" in line for line in found)


def test_only_the_first_process_writes(capsys, monkeypatch):
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    fit(max_epochs=1)
    assert lines(capsys) == []


def test_time_left_is_that_of_the_epochs_so_far(capsys, monkeypatch):
    clock = iter([0.0, 100.0, 200.0, 500.0, 500.0, 600.0])
    monkeypatch.setattr("lightning_fold.commands.fit.epoch_lines.time", SimpleNamespace(monotonic=lambda: next(clock)))
    fit(max_epochs=3)
    ends = [line.split(")")[1].strip() for line in lines(capsys)]
    assert ends == ["1 min 40 s  3 min 20 s left", "5 min 0 s  3 min 20 s left", "1 min 40 s  0.0 s left"]


def test_duration():
    texts = [duration(seconds) for seconds in (0.04, 9.94, 42, 59.6, 200, 3900)]
    assert texts == ["0.0 s", "9.9 s", "42 s", "1 min 0 s", "3 min 20 s", "1 h 5 min"]
