"""A small trained run, as the command ``fit`` leaves it."""

import sys

import lightning
import pytest
import torch
import yaml

import lightning_fold as lf
from lightning_fold.cli import main
from lightning_fold.commands import trials
from lightning_fold.data import DigitsDataModule
from lightning_fold.modules import Classifier

NETWORK_ARGS = {"in_features": 64, "hidden": [48, 32], "out_features": 10}
DATA = {"class_path": "lightning_fold.data.DigitsDataModule", "init_args": {"batch_size": 128}}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder ``version_0`` with ``config.yaml`` and ``checkpoints/last.ckpt`` of a network trained for some epochs."""
    folder = tmp_path_factory.mktemp("runs") / "version_0"
    torch.manual_seed(0)
    module = Classifier(network_args=NETWORK_ARGS, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DigitsDataModule(batch_size=128))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": DATA}))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])
    trials._cached_run.cache_clear()  # what it holds is of another folder
    return lambda *words: main([str(word) for word in words])


@pytest.fixture
def mistake(run, capsys):
    """Run a command that must fail with code 2; gives its one line and the hint."""

    def fail(*words):
        with pytest.raises(SystemExit) as exit_info:
            run(*words)
        assert exit_info.value.code == 2
        error, hint = capsys.readouterr().err.splitlines()[-2:]
        assert error.startswith("error: ") and hint.startswith("hint: ")
        return error, hint

    return fail


@pytest.fixture(scope="session")
def accuracy():
    """Share of right answers on the test digits, computed without Lightning."""
    inputs, targets = DigitsDataModule().splits.test.__getitems__(range(360))

    def compute(network):
        with torch.no_grad():
            return (network.eval()(inputs).argmax(1) == targets).float().mean().item()

    return compute


@pytest.fixture
def resnet(tmp_path):
    """Writes a small ResNet, with BatchNorm statistics of the data or with those it begins with, and its data."""

    def write(fitted):
        torch.manual_seed(0)
        arguments = {"depth": 8, "in_channels": 1, "widths": [4, 5, 6], "num_classes": 10}
        model = lf.models.CifarResNet(**arguments)
        if fitted:
            lf.repair(model, DigitsDataModule().train_dataloader())
        lf.save(model, tmp_path / "dense.pt", network="lightning_fold.models.CifarResNet", network_args=arguments)
        data = {"class_path": "lightning_fold.data.DigitsDataModule"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))

    return write
