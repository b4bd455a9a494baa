"""Full disks, folders nobody may write to, broken and hostile files: a clear error, no code run, nothing lost."""

import pickle
import sys
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import ChannelPruning
from lightning_fold.cli import main
from lightning_fold.data import DigitsDataModule
from lightning_fold.modules import Classifier
from lightning_fold.storage.files import write_atomically

NETWORK = {"in_features": 64, "hidden": [12], "out_features": 10}


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def hostile(path, marker, how):
    content = {"lightning_fold": 1, "network": Hostile(marker), "state_dict": {"weight": Hostile(marker)}}
    torch.save(content, path) if how == "torch" else path.write_bytes(pickle.dumps(content))


def trainer(**arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet, **arguments)


def command(checkpoint):
    Path("config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"init_args": {"network_args": NETWORK}},
                "data": {"class_path": "lightning_fold.data.DigitsDataModule"},
                "trainer": {"accelerator": "cpu", "logger": False},
            }
        )
    )
    main(["test", "--config", "config.yaml", "--ckpt_path", str(checkpoint)])


READERS = {
    "lf.load": lf.load,
    "lf.load_from_checkpoint": lambda path: lf.load_from_checkpoint(Classifier, path),
    "resume": lambda path: trainer(callbacks=[ChannelPruning()]).fit(
        Classifier(network_args=NETWORK), DigitsDataModule(), ckpt_path=path
    ),
    "command": command,
}


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("reader", list(READERS))
def test_pickled_code_is_not_run(tmp_path, monkeypatch, capsys, reader, how):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])
    hostile(tmp_path / "evil.ckpt", tmp_path / "marker", how)
    with pytest.raises((ValueError, SystemExit, pickle.UnpicklingError)) as found:
        READERS[reader](tmp_path / "evil.ckpt")
    assert not (tmp_path / "marker").exists()
    shown = str(found.value) if not isinstance(found.value, SystemExit) else capsys.readouterr().err
    assert "cannot be read" in shown or (reader == "resume" and "weights_only" in shown)
    torch.load(tmp_path / "evil.ckpt", weights_only=False) if how == "torch" else pickle.loads(
        (tmp_path / "evil.ckpt").read_bytes()
    )
    assert (tmp_path / "marker").exists()  # the file was hostile indeed


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("reader", ["lf.load", "lf.load_from_checkpoint", "command"])
def test_truncated_files(tmp_path, monkeypatch, capsys, reader, share):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])
    path, module = tmp_path / "cut.ckpt", Classifier(network_args=NETWORK)
    saver = trainer()
    saver.strategy.connect(module)
    saver.save_checkpoint(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((ValueError, SystemExit)) as found:
        READERS[reader](path)
    shown = str(found.value) if isinstance(found.value, ValueError) else capsys.readouterr().err
    assert "cannot be read" in shown and "truncated" in shown


def test_missing_checkpoint():
    with pytest.raises(FileNotFoundError, match=r"load_from_checkpoint\(Classifier, 'none\.ckpt'\): there is no such"):
        lf.load_from_checkpoint(Classifier, "none.ckpt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("name", ["small.pt", "compression.json"])
def test_full_disk_loses_nothing(tmp_path, name):
    def write(path):
        if name == "small.pt":
            arguments = {"in_features": 300, "out_features": 300}
            lf.save(nn.Linear(300, 300), path, network="torch.nn.Linear", network_args=arguments)
        else:
            write_atomically(path, lambda partial: partial.write_text("x" * 100_000))

    write(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    stem, _, suffix = name.partition(".")
    (tmp_path / f".{stem}.partial.{suffix}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"{name}' could not be written.*Free some space or choose another folder"):
        write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
def test_folder_nobody_can_write_to():
    arguments = {"in_features": 2, "out_features": 2}
    with pytest.raises(OSError, match=r"'/proc/lightning_fold/small\.pt' could not be written"):
        lf.save(nn.Linear(2, 2), "/proc/lightning_fold/small.pt", network="torch.nn.Linear", network_args=arguments)
