"""FoldCLI: the defaults of this package, and where a mistake is reported."""

import sys

import lightning
import pytest

from lightning_fold.commands.fit.epoch_lines import EpochLines
from lightning_fold.commands.fit.training import TRAINER_DEFAULTS, FoldCLI
from lightning_fold.commands.parser import Parser
from lightning_fold.modules import Classifier

NETWORK = ["--model.network_args", "{in_features: 64, hidden: [4], out_features: 10}"]
QUIET = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]


@pytest.fixture
def cli(monkeypatch):
    """Builds everything for ``words`` and runs nothing."""
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])
    monkeypatch.setattr(FoldCLI, "_run_subcommand", lambda self, subcommand: None)

    def build(*words: str) -> FoldCLI:
        data = "--data=lightning_fold.data.DigitsDataModule"
        return FoldCLI(
            lightning.LightningModule,
            lightning.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=Parser,
            args=["fit", data, *NETWORK, *QUIET, *words],
        )

    return build


def _has(trainer: lightning.Trainer, kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in trainer.callbacks)


def test_classifier_is_the_model_and_lines_take_the_place_of_a_bar(cli) -> None:
    built = cli()
    assert isinstance(built.model, Classifier)
    assert _has(built.trainer, EpochLines) and built.trainer.progress_bar_callback is None


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["--trainer.enable_progress_bar=true"], True),
        (["--trainer.callbacks=TQDMProgressBar"], True),
        (["--trainer.fast_dev_run=true"], False),
    ],
)
def test_bar_that_is_asked_for_is_there(cli, words: list[str], lines: bool) -> None:
    trainer = cli(*words).trainer
    assert (_has(trainer, EpochLines), trainer.progress_bar_callback is not None) == (lines, True)


def test_value_that_a_constructor_refuses_is_reported_like_any_other(cli, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli("--model.label_smoothing=2")
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert exit_info.value.code == 2 and "label_smoothing=2" in error and hint.startswith("hint: ")


def test_checkpoint_that_is_none_is_reported_before_anything_is_built(cli, capsys, tmp_path) -> None:
    (tmp_path / "x.ckpt").write_text("no checkpoint")
    with pytest.raises((SystemExit, ValueError)) as raised:
        cli(f"--ckpt_path={tmp_path / 'x.ckpt'}")
    assert "x.ckpt" in capsys.readouterr().err + str(raised.value)
