"""The end of a fit by the command: what it measures, writes and prints."""

import json
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import lightning_fold as lf
from lightning_fold.callbacks import ChannelFolding
from lightning_fold.cli import main
from lightning_fold.commands.fit.summary import summarise_run
from lightning_fold.data import DigitsDataModule
from lightning_fold.models import MLP
from lightning_fold.modules import Classifier

NETWORK = {"in_features": 64, "hidden": [24, 16], "out_features": 10}
SQUEEZE = {"dense_epochs": 2, "cycles": 1, "shrink_epochs": 1, "masked_epochs": 1, "sparsity": [0.5]}
CONFIG = {
    "model": {
        "class_path": "lightning_fold.modules.Classifier",
        "init_args": {
            "network": "lightning_fold.models.MLP",
            "network_args": NETWORK,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
    },
    "data": {"class_path": "lightning_fold.data.DigitsDataModule"},
    "trainer": {
        "max_epochs": 5,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "lightning_fold.callbacks.SqueezeRelease", "init_args": SQUEEZE},
            {"class_path": "lightning_fold.callbacks.CompressionMonitor"},
        ],
    },
}

LOAD = """
import sys, torch, lightning_fold as lf
from lightning_fold.data import DigitsDataModule
network = lf.load(sys.argv[1])
inputs, targets = DigitsDataModule().splits.test.__getitems__(range(360))
sys.stdout.write(str(int((network(inputs).argmax(1) == targets).sum())))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run, what it wrote as compression.json, and what it printed."""
    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
        command = [
            sys.executable,
            "-c",
            "from lightning_fold.cli import main; main()",
            "fit",
            "--config",
            "config.yaml",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "version_0"
    return run, json.loads((run / "compression.json").read_text()), done.stdout + done.stderr


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])
    return tmp_path


def test_summary_has_the_agreed_keys(finished):
    _, summary, _ = finished
    keys = {"test_accuracy", "val_accuracy", "parameters", "flops", "bytes", "latency_ms"}
    assert set(summary["dense"]) == set(summary["compressed"]) == keys
    assert [entry["method"] for entry in summary["methods"]] == ["squeeze-release"]


def test_latency_names_its_conditions_and_what_arrives(finished):
    run, summary, _ = finished
    dense, small, latency = summary["dense"], summary["compressed"], summary["latency"]
    assert {**latency, "threads": 0, "share_of_flop_saving": 0} == {
        "device": "cpu",
        "dtype": "float32",
        "batch": 1,
        "threads": 0,
        "runs": 100,
        "share_of_flop_saving": 0,
    }
    arrived = (1 - small["latency_ms"] / dense["latency_ms"]) / (1 - small["flops"] / dense["flops"])
    assert latency["share_of_flop_saving"] == pytest.approx(arrived)
    events = EventAccumulator(str(run))
    events.Reload()
    for tag, value in (("dense_ms", dense["latency_ms"]), ("compressed_ms", small["latency_ms"])):
        assert events.Scalars(f"latency/{tag}")[-1].value == pytest.approx(value)
    assert events.Scalars("latency/share_of_flop_saving")[-1].value == pytest.approx(arrived)


def test_tensorboard_ends_with_what_the_summary_says(finished):
    run, summary, _ = finished
    events = EventAccumulator(str(run))
    events.Reload()
    for tag, value in (
        ("compressed/accuracy", summary["compressed"]["val_accuracy"]),
        ("dense/accuracy", summary["dense"]["val_accuracy"]),
        ("compression/parameters", summary["compressed"]["parameters"]),
        ("compression/flops", summary["compressed"]["flops"]),
    ):
        assert events.Scalars(tag)[-1].value == pytest.approx(value)
    data = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    shown = [info.name.tag for info in HParamsPluginData.FromString(data).experiment.metric_infos]
    assert {"compressed/accuracy", "accuracy/test", "compression/factor", "latency/compressed_ms"} <= set(shown)
    started = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(started).session_start_info.hparams
    assert values["network"].string_value == "lightning_fold.models.MLP"
    assert values["network_args/in_features"].number_value == 64
    assert values["rewrites"].string_value == "squeeze-release"
    cycles, sparsity = values["SqueezeRelease/cycles"], values["SqueezeRelease/sparsity"]
    assert (cycles.number_value, sparsity.string_value) == (SQUEEZE["cycles"], str(SQUEEZE["sparsity"]))


def test_numbers_are_those_of_the_files(finished):
    run, summary, _ = finished
    example = torch.rand(1, 1, 8, 8)
    for kind in ("dense", "compressed"):
        network, measured = lf.load(run / f"{kind}.pt"), summary[kind]
        assert measured["parameters"] == lf.count_parameters(network)
        assert measured["flops"] == lf.count_flops(network, example)
        assert measured["bytes"] == (run / f"{kind}.pt").stat().st_size
        assert 0 < measured["latency_ms"] < 1000
        inputs, targets = DigitsDataModule().splits.val.__getitems__(range(180))
        correct = (network(inputs).argmax(1) == targets).float().mean().item()
        assert measured["val_accuracy"] == pytest.approx(correct)
    assert summary["dense"]["parameters"] == lf.count_parameters(MLP(**NETWORK))
    assert summary["dense"]["parameters"] > 1.2 * summary["compressed"]["parameters"]


class DrawnDigits(DigitsDataModule):
    """A test on 40 images drawn anew at every setup, without a generator of its own."""

    def setup(self, stage):
        super().setup(stage)
        self.drawn = torch.randperm(360)[:40].tolist()

    def test_dataloader(self):
        return torch.utils.data.DataLoader([self.splits.test[i] for i in self.drawn], batch_size=40)


def test_both_networks_meet_the_same_data(in_folder):
    lightning.seed_everything(3)
    module = Classifier(network="lightning_fold.models.MLP", network_args=NETWORK)
    data = DrawnDigits()
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, datamodule=data)
    summary = summarise_run(trainer, module, data)
    assert summary is not None and not summary.methods  # nothing was rewritten: they are the same network
    assert summary.dense.metrics == summary.compressed.metrics


class OnlyTraining(lightning.LightningDataModule):
    """Digits to train on, and nothing else."""

    def train_dataloader(self):
        return DigitsDataModule().train_dataloader()


def test_data_without_validation_is_written_and_not_measured(in_folder):
    module = Classifier(network="lightning_fold.models.MLP", network_args=NETWORK)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, callbacks=[ChannelFolding(keep=0.5, of="channels")], **silent)
    trainer.fit(module, datamodule=(data := OnlyTraining()))
    summary = summarise_run(trainer, module, data)
    assert summary is not None and summary.compressed.val_accuracy is summary.compressed.test_accuracy is None
    small = lf.load(summary.files["compressed network"])
    torch.testing.assert_close(small.state_dict(), module.network.state_dict())
    assert lf.count_parameters(small) == summary.compressed.parameters < summary.dense.parameters


def test_compressed_file_gives_the_logged_accuracy_in_a_new_process(finished):
    run, summary, _ = finished
    command = [sys.executable, "-c", LOAD, str(run / "compressed.pt")]
    correct = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)
    assert summary["compressed"]["test_accuracy"] == pytest.approx(correct / 360, abs=1e-7)
    events = EventAccumulator(str(run))
    events.Reload()
    assert events.Scalars("accuracy/test")[0].value == pytest.approx(correct / 360)


def test_checkpoint_is_tested_by_the_command(finished, in_folder, capsys):
    """Without the callbacks and with another network in the configuration: the checkpoint says what it holds."""
    run, summary, _ = finished
    Path("plain.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": {"accelerator": "cpu", "logger": False}}))
    main(["test", "--config", "plain.yaml", "--ckpt_path", str(run / "checkpoints" / "compressed.ckpt")])
    assert f"{summary['compressed']['test_accuracy']:.6f}"[:8] in capsys.readouterr().out


def test_what_is_printed(finished):
    run, summary, printed = finished
    factor = summary["dense"]["parameters"] / summary["compressed"]["parameters"]
    assert f"{factor:.1f}x smaller" in printed
    assert f"{summary['compressed']['test_accuracy']:.2%}" in printed
    for place in ("compressed.pt", "checkpoints/compressed.ckpt", "compression.json"):
        assert f"{Path('runs') / run.name / place}" in printed
    assert printed.count("GPU available") == 1
    assert "weights_only" not in printed
    assert "Warning" not in printed


def test_no_room_for_the_result_is_reported_in_one_line(in_folder, monkeypatch, capsys):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_room)
    trainer = {**CONFIG["trainer"], "max_epochs": 1, "callbacks": [], "enable_checkpointing": False}
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": trainer}))
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", "config.yaml"])
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert exit_info.value.code == 2
    assert "dense.pt' could not be written" in error and "No space left" in error
    assert hint.startswith("hint: ")


def test_folder_that_cannot_be_made_is_reported_in_one_line(in_folder, capsys):
    Path("runs").write_text("a file where the folder should be")
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": {**CONFIG["trainer"], "callbacks": []}}))
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", "config.yaml"])
    assert exit_info.value.code == 2
    assert "runs" in capsys.readouterr().err.splitlines()[-2]


def with_squeeze(**arguments):
    squeeze = {"class_path": "lightning_fold.callbacks.SqueezeRelease", "init_args": {**SQUEEZE, **arguments}}
    return {**CONFIG, "trainer": {**CONFIG["trainer"], "callbacks": [squeeze]}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (with_squeeze(sparsity=[1.5]), ["SqueezeRelease(sparsity=1.5)", "expected a share in [0, 1)"]),
        (with_squeeze(sparsty=[0.5]), ["'sparsty'", "did you mean 'sparsity'"]),
        (with_squeeze(criterion="luck"), ["criterion", "magnitude"]),
        (with_squeeze(cycles=9), ["needs 20 epochs, found Trainer(max_epochs=5)"]),
        (with_squeeze(module="net"), ["module='net'", "['network']"]),
    ],
)
def test_mistake_in_a_callback_is_reported_in_one_line(in_folder, capsys, config, expected):
    Path("config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", "config.yaml"])
    assert exit_info.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert all(words in error for words in expected), error


@pytest.mark.parametrize("kind", ["other network", "no checkpoint"])
def test_checkpoint_of_another_network_is_reported_in_one_line(in_folder, capsys, kind):
    content = {"state_dict": {"conv.weight": torch.zeros(2, 1, 3, 3)}, "pytorch-lightning_version": "2.6.0"}
    torch.save(content if kind == "other network" else [1, 2], "other.ckpt")
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(SystemExit) as exit_info:
        main(["test", "--config", "config.yaml", "--ckpt_path", "other.ckpt"])
    assert exit_info.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert ("network" if kind == "other network" else "other.ckpt") in error
