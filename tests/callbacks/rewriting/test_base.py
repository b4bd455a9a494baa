"""What every callback that rewrites shares: names, messages, validations, networks that are built late."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import (
    ChannelFolding,
    CompressionMonitor,
    LowRankFactorization,
)
from lightning_fold.storage.checkpoints import record_of
from tests.callbacks.conftest import ConvNet, Plain, assert_same_network


@pytest.mark.parametrize(("at_epoch", "before"), [(1, 1), (-1, 3)])
def test_accuracy_before_and_after_is_logged(make_classifier, make_trainer, data, tmp_path, at_epoch, before):
    """A rewrite at the end is followed by a validation of its own; two of them, by one behind the last."""
    module, logger = make_classifier("conv"), CSVLogger(tmp_path)
    callbacks = [
        ChannelFolding(keep=0.6, compensate="least-squares", batches=2, at_epoch=at_epoch),
        LowRankFactorization(keep=0.8, at_epoch=at_epoch),
        CompressionMonitor(),
    ]
    trainer = make_trainer(3, *callbacks, logger=logger)
    trainer.fit(module, data)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    shown = {tag: [float(row[tag]) for row in rows if row[tag]] for tag in rows[0]}
    validated = shown["accuracy/val"]
    assert len(validated) == (3 if at_epoch == 1 else 4)
    assert shown["compressed/accuracy"] == pytest.approx(validated[before:])
    assert shown["dense/accuracy"] == pytest.approx([validated[before - 1]] * len(validated[before:]))
    (again,) = trainer.validate(module, data, verbose=False)
    assert again["accuracy/val"] == pytest.approx(validated[-1])


@pytest.mark.parametrize("limit", [{"check_val_every_n_epoch": 2}, {"max_steps": 7}])
@pytest.mark.parametrize("resumed", [False, True])
def test_rewrite_that_no_validation_follows_is_validated_at_the_end(
    make_classifier, make_trainer, data, tmp_path, limit, resumed
):
    """Before an epoch that is not validated, or not finished; also where the run is resumed after its last step."""
    module, saving = make_classifier("conv"), ModelCheckpoint(tmp_path, save_on_train_epoch_end=True)
    trainer = make_trainer(3, ChannelFolding(keep=0.5, of="channels", at_epoch=2), saving, **limit)
    trainer.fit(module, data)
    if resumed:
        module, trainer = (
            make_classifier("conv"),
            make_trainer(3, ChannelFolding(keep=0.5, of="channels", at_epoch=2), **limit),
        )
        trainer.fit(module, data, ckpt_path=saving.best_model_path, weights_only=True)
    (again,) = make_trainer(1).validate(module, data, verbose=False)
    assert record_of(module).methods[-1]["epoch"] == 2
    for name in ("accuracy/val", "compressed/accuracy"):
        assert trainer.callback_metrics[name] == pytest.approx(again["accuracy/val"])


def test_size_and_what_was_undone_is_told(make_classifier, make_trainer, data, caplog, monkeypatch):
    module, folding = make_classifier("conv"), ChannelFolding(keep=0.6, of="channels")
    noted = lambda *a, **k: replace(lf.fold(*a, **k), notes=("a repair was undone",))  # noqa: E731
    monkeypatch.setattr("lightning_fold.callbacks.channel_folding.fold", noted)
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="ChannelFolding, epoch 1 of 1: a repair was undone"):
        make_trainer(1, folding).fit(module, data)
    assert folding.report.parameters_after == lf.count_parameters(module.network)
    assert f"ChannelFolding, epoch 1 of 1: {folding.report.summary}" in caplog.text


@pytest.mark.parametrize("epochs", [-1, None])
def test_number_of_epochs_is_told_where_it_is_known(make_classifier, make_trainer, data, caplog, epochs):
    folding = ChannelFolding(keep=0.6, of="channels")
    with caplog.at_level("INFO"):
        make_trainer(epochs, folding, max_steps=3).fit(make_classifier(), data)
    assert f"ChannelFolding, epoch 1: {folding.report.summary}" in caplog.text


def test_one_class_twice(make_classifier, make_trainer, data, run_and_save):
    """Folded before two epochs, stopped in between: as the unbroken run."""
    unbroken, resumed = make_classifier("conv"), make_classifier("conv")
    twice = lambda: [ChannelFolding(0.7, "channels", at_epoch=epoch) for epoch in (1, 2)]  # noqa: E731
    folder = run_and_save(unbroken, 3, *twice())
    make_trainer(3, *twice()).fit(resumed, data, ckpt_path=folder / "1.ckpt", weights_only=True)
    assert [method["epoch"] for method in record_of(unbroken).methods] == [1, 2]
    assert_same_network(unbroken.network, resumed.network)


class Configured(Plain):
    """Builds its network where Lightning asks for it."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.backbone = None

    def configure_model(self):
        if self.backbone is None:
            torch.manual_seed(3)
            self.backbone = ConvNet()


def test_network_that_configure_model_builds(make_trainer, data, every_epoch):
    module, resumed = Configured(), Configured()
    trainer = make_trainer(2, ChannelFolding(keep=0.6, of="channels", module="backbone"), every_epoch)
    trainer.fit(module, data)
    assert record_of(module).methods[0]["parameters"] < record_of(module).dense.parameters
    again = make_trainer(2, ChannelFolding(keep=0.6, of="channels", module="backbone"))
    again.fit(resumed, data, ckpt_path=Path(every_epoch.dirpath) / "1.ckpt")
    assert_same_network(resumed.backbone, module.backbone)


def test_network_that_setup_builds_comes_too_late(make_trainer, data):
    class Late(Plain):
        def __init__(self):
            super().__init__(nn.Identity())
            self.scale = None

        def setup(self, stage):
            self.backbone = ConvNet()

    with pytest.raises(ValueError, match=r"Late has no parameters when callbacks are set up; expected .* in __init__"):
        make_trainer(1, ChannelFolding(keep=0.6, of="channels")).fit(Late(), data)


@pytest.mark.filterwarnings("default")
def test_a_metric_that_nobody_logs_is_missed_once(make_classifier, make_trainer, data):
    callbacks = [ChannelFolding(keep=0.6, monitor="nobody"), LowRankFactorization(keep=0.8, monitor="nobody")]
    with pytest.warns(UserWarning) as warned:
        make_trainer(2, *callbacks).fit(make_classifier("conv"), data)
    (message,) = [str(each.message) for each in warned if "'nobody'" in str(each.message)]
    assert "ChannelFolding" in message and "LowRankFactorization" in message and "'accuracy/val'" in message
