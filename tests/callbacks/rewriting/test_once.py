"""The callbacks that rewrite once: ChannelFolding, ChannelPruning, LowRankFactorization."""

import csv
from copy import deepcopy
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
    ChannelPruning,
    CompressionMonitor,
    LowRankFactorization,
    SqueezeRelease,
)
from lightning_fold.storage.checkpoints import record_of
from tests.callbacks.conftest import ConvNet, Plain
from tests.callbacks.projects import loader, project

METHODS = {
    "fold": (ChannelFolding, {"keep": 0.6, "of": "channels"}, lambda net, x: lf.fold(net, x, keep=0.6, of="channels")),
    "prune": (
        ChannelPruning,
        {"keep": 0.6, "of": "channels", "importance": "l1"},
        lambda net, x: lf.prune(net, x, keep=0.6, of="channels", importance="l1"),
    ),
    "factorize_flops": (
        LowRankFactorization,
        {"keep": 0.7, "of": "flops"},
        lambda net, x: lf.factorize(net, x, keep=0.7, of="flops"),
    ),
    "factorize": (
        LowRankFactorization,
        {"keep": 0.6},
        lambda net, x: lf.factorize(net, x, keep=0.6),
    ),
}

every_method = pytest.mark.parametrize("method", list(METHODS))
every_network = pytest.mark.parametrize("network", ["mlp", "conv"])


def assert_same_network(one, other):
    assert lf.describe(one) == lf.describe(other)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@every_method
@every_network
def test_rewrites_at_the_end_as_the_function_does(make_classifier, make_trainer, data, method, network):
    """Training without the callback and then calling the function gives the same network."""
    callback, arguments, function = METHODS[method]
    by_callback, by_hand = make_classifier(network), make_classifier(network)
    make_trainer(2, callback(**arguments)).fit(by_callback, data)
    make_trainer(2).fit(by_hand, data)
    report = function(by_hand.network, torch.rand(4, 1, 6, 6))
    assert report.parameters_after < report.parameters_before
    assert_same_network(by_callback.network, by_hand.network)
    assert record_of(by_callback).methods == [
        {"method": method.partition("_")[0], "epoch": 2, "parameters": report.parameters_after}
    ]
    assert record_of(by_callback).dense.parameters == report.parameters_before


def test_looks_at_the_same_batches_when_resumed_after_the_last_epoch(
    make_classifier, make_trainer, data, every_epoch, tmp_path
):
    """The last epoch's order, not the first one's."""
    unbroken, resumed = make_classifier("conv"), make_classifier("conv")
    looking = {"keep": 0.6, "of": "channels", "batches": 2, "compensate": "least-squares", "repair": "data"}
    make_trainer(2, ChannelPruning(**looking), every_epoch).fit(unbroken, data)
    last = tmp_path / "all" / "1.ckpt"
    make_trainer(2, ChannelPruning(**looking)).fit(
        resumed, type(data)(batch_size=32), ckpt_path=last, weights_only=True
    )
    assert_same_network(unbroken.network, resumed.network)


@every_method
def test_rewrites_before_an_epoch_and_trains_on(make_classifier, make_trainer, data, method):
    callback, arguments, _ = METHODS[method]
    module = make_classifier()
    trainer = make_trainer(3, callback(**arguments, at_epoch=1))
    trainer.fit(module, data)
    assert [m["epoch"] for m in record_of(module).methods] == [1]
    trained = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert list(map(id, trained)) == list(map(id, module.parameters()))
    assert all(float(trainer.optimizers[0].state[p]["step"]) >= 6 for p in module.parameters())


@every_method
@pytest.mark.parametrize("stopped_after", [0, 1, 2])
@pytest.mark.parametrize("at_epoch", [-1, 1])
def test_resumed_run_ends_as_the_unbroken_one(
    make_classifier, make_trainer, run_and_save, data, method, at_epoch, stopped_after
):
    callback, arguments, _ = METHODS[method]
    unbroken, resumed = make_classifier(), make_classifier()
    folder = run_and_save(unbroken, 3, callback(**arguments, at_epoch=at_epoch))
    trainer = make_trainer(3, callback(**arguments, at_epoch=at_epoch))
    trainer.fit(resumed, data, ckpt_path=folder / f"{stopped_after}.ckpt", weights_only=True)
    assert_same_network(unbroken.network, resumed.network)
    assert len(record_of(resumed).methods) == len(record_of(unbroken).methods) == 1


def cycles_then_low_rank():
    """One epoch dense, one masked; before epoch 2 the last cycle ends and what it left is factorized."""
    squeeze = SqueezeRelease(dense_epochs=1, cycles=1, shrink_epochs=0, masked_epochs=1, sparsity=[0.5])
    return squeeze, LowRankFactorization(keep=0.6, at_epoch=2)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_low_rank_after_the_cycles_resumes_as_the_unbroken_run(
    make_classifier, make_trainer, run_and_save, data, stopped_after
):
    unbroken, resumed = make_classifier(), make_classifier()
    folder = run_and_save(unbroken, 4, *cycles_then_low_rank())
    trainer = make_trainer(4, *cycles_then_low_rank())
    trainer.fit(resumed, data, ckpt_path=folder / f"{stopped_after}.ckpt", weights_only=True)
    assert_same_network(unbroken.network, resumed.network)
    assert record_of(unbroken).methods == record_of(resumed).methods
    (squeezed, factorized) = record_of(resumed).methods
    assert [squeezed["method"], factorized["method"]] == ["squeeze-release", "factorize"]
    assert squeezed["epoch"] == factorized["epoch"] == 2
    assert lf.count_parameters(resumed.network) == factorized["parameters"] <= 0.6 * squeezed["parameters"]


def test_factorizes_on_training_batches(make_classifier, make_trainer, data):
    """With all batches of the epoch, and then by hand on the same training images."""
    by_callback, by_hand = make_classifier("conv"), make_classifier("conv")
    make_trainer(1, LowRankFactorization(keep=0.6, batches=99)).fit(by_callback, data)
    make_trainer(1).fit(by_hand, data)
    images, _ = data.splits.train.__getitems__(range(96))
    lf.factorize(by_hand.network, images[:2], keep=0.6, batches=[images])
    assert lf.describe(by_callback.network) == lf.describe(by_hand.network)
    other = data.splits.test.__getitems__(range(32))[0]
    torch.testing.assert_close(by_callback.network.eval()(other), by_hand.network.eval()(other), rtol=1e-3, atol=1e-3)


WITH_DATA = {
    "fold_budget": (ChannelFolding, {"keep": 0.6, "repair": "data", "batches": 3}),
    "fold_flops": (ChannelFolding, {"keep": 0.6, "of": "flops", "compensate": "least-squares", "batches": 2}),
    "fold_least_squares": (
        ChannelFolding,
        {"keep": 0.7, "of": "channels", "compensate": "least-squares", "batches": 2},
    ),
    "prune_budget": (
        ChannelPruning,
        {"keep": 0.6, "importance": "activation", "compensate": "bias", "repair": "data", "batches": 2},
    ),
    "prune_least_squares": (
        ChannelPruning,
        {"keep": 0.7, "of": "channels", "importance": "reconstruction", "compensate": "least-squares", "batches": 3},
    ),
}
every_way = pytest.mark.parametrize("way", list(WITH_DATA))


@every_way
def test_reduces_on_training_batches_as_the_function_does(make_classifier, make_trainer, data, way, monkeypatch):
    """The function, called by hand on the batches that the callback looked at."""
    kind, arguments = WITH_DATA[way]
    function = {ChannelFolding: lf.fold, ChannelPruning: lf.prune}[kind]
    callback, seen = kind(**arguments), []
    change = callback.change
    keep_last = lambda batches: seen.__setitem__(slice(None), batches) or change(batches)  # noqa: E731  after a rehearsal
    monkeypatch.setattr(callback, "change", keep_last)
    by_callback, by_hand = make_classifier("conv"), make_classifier("conv")
    make_trainer(1, callback).fit(by_callback, data)
    make_trainer(1).fit(by_hand, data)
    given = {tuple(image.flatten().tolist()) for image in data.splits.train.__getitems__(range(96))[0]}
    looked_at = [tuple(image.flatten().tolist()) for (images,) in seen for image in images]
    assert len(seen) == arguments["batches"] and len(set(looked_at)) == 32 * len(seen) and set(looked_at) <= given
    report = function(by_hand.network, torch.rand(4, 1, 6, 6), **{**arguments, "batches": seen})
    assert_same_network(by_callback.network, by_hand.network)
    if "of" not in arguments:
        left = report.parameters_after / report.parameters_before
        assert abs(left - 0.6) <= 0.02 or "nearest" in report.notes[-1]


@every_way
def test_rehearses_on_two_examples(make_classifier, way):
    """A network that takes hours is not measured twice."""
    kind, arguments = WITH_DATA[way]
    network, seen = make_classifier("conv").network, []
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    kind(**arguments).dry_run(network, torch.rand(64, 1, 6, 6))
    assert set(seen) <= {1, 2}


@every_way
@pytest.mark.parametrize("at_epoch", [-1, 1])
def test_resumed_on_training_batches_as_the_unbroken_run(
    make_classifier, make_trainer, run_and_save, data, way, at_epoch
):
    kind, arguments = WITH_DATA[way]
    unbroken, resumed = make_classifier("conv"), make_classifier("conv")
    folder = run_and_save(unbroken, 2, kind(**arguments, at_epoch=at_epoch))
    trainer = make_trainer(2, kind(**arguments, at_epoch=at_epoch))
    trainer.fit(resumed, data, ckpt_path=folder / "0.ckpt", weights_only=True)
    assert_same_network(unbroken.network, resumed.network)


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


def test_rewrite_is_done_once(make_classifier, make_trainer, data):
    module, callback = make_classifier(), ChannelPruning(keep=0.7, of="channels")
    make_trainer(1, callback).fit(module, data)
    once = deepcopy(module.network)
    callback.finish(module.trainer, module)
    assert_same_network(once, module.network)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChannelFolding(keep=0.0, of="channels"), r"ChannelFolding\(keep=0\.0\): expected a share in \(0, 1\]"),
        (lambda: ChannelFolding(repair="some"), r"repair='some'"),
        (lambda: ChannelPruning(keep=-0.1), r"ChannelPruning\(keep=-0\.1\)"),
        (lambda: ChannelPruning(importance="l3"), r"importance='l3'"),
        (lambda: ChannelPruning(at_epoch=-2), r"ChannelPruning\(at_epoch=-2\): expected an epoch of at least 0, or -1"),
        (lambda: LowRankFactorization(keep=0.0), r"keep=0\.0\): expected a share in \(0, 1\]"),
        (lambda: LowRankFactorization(keep=1.1), r"keep=1\.1\)"),
        (
            lambda: LowRankFactorization(of="layers"),
            r"of='layers'\): expected one of 'parameters', 'flops', 'channels'",
        ),
        (lambda: ChannelFolding({"head": 0.5}), r"Folding\(keep=\{'head': 0\.5\}\): expected a share of the whole"),
        (lambda: ChannelPruning(keep=0.0, of="flops"), r"ChannelPruning\(keep=0\.0\): expected a share in \(0, 1\]"),
        (lambda: LowRankFactorization(keep=1.1, of="flops"), r"keep=1\.1\)"),
        (
            lambda: LowRankFactorization(batches=-1),
            r"batches=-1\): expected a whole number of at least 0",
        ),
        (lambda: LowRankFactorization(batches=2.5), r"batches=2\.5\): expected a whole number"),
        (lambda: LowRankFactorization(batches="8"), r"batches='8'\): expected a whole number"),
        (lambda: ChannelFolding(batches=2.5), r"ChannelFolding\(batches=2\.5\): expected a whole number of at least 0"),
        (lambda: ChannelPruning(batches="8"), r"ChannelPruning\(batches='8'\): expected a whole number of at least 0"),
        (lambda: ChannelPruning(batches=-1), r"ChannelPruning\(batches=-1\): expected a whole number of at least 0"),
        (lambda: ChannelFolding(repair="data"), r"batches=0, repair='data'\): expected at least 1 batch\."),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_epoch_after_the_end_is_refused(make_classifier, make_trainer, data):
    with pytest.raises(ValueError, match=r"ChannelPruning\(at_epoch=2\): expected an epoch below .*max_epochs=2"):
        make_trainer(2, ChannelPruning(at_epoch=2)).fit(make_classifier(), data)


ONCE = {"prune": ChannelPruning, "fold": ChannelFolding, "factorize": LowRankFactorization}


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize(
    ("at_epoch", "first", "allowed"),
    [
        (0, True, True),  # before the cycles
        (1, True, True),
        (1, False, False),  # the first cycle has begun when its turn comes
        (2, True, False),
        (2, False, False),
        (4, True, False),  # the last cycle ends only after it
        (4, False, True),
        (5, True, True),
        (-1, True, True),
    ],
)
def test_rewrite_inside_cycles_is_refused(make_classifier, make_trainer, data, name, at_epoch, first, allowed):
    squeeze = SqueezeRelease(dense_epochs=1, cycles=3, shrink_epochs=0, masked_epochs=1, sparsity=[0.3])
    once = ONCE[name](at_epoch=at_epoch)
    module = make_classifier()
    trainer = make_trainer(6, *((once, squeeze) if first else (squeeze, once)), limit_train_batches=1)
    if allowed:
        for callback in trainer.callbacks:
            callback.setup(trainer, module, "fit")
        return
    dense = deepcopy(module.network)
    with pytest.raises(
        ValueError,
        match=rf"{type(once).__name__}\(at_epoch={at_epoch}\): SqueezeRelease works .* epochs 1 to 3.*Set at_epoch=4",
    ):
        trainer.fit(module, data)
    assert_same_network(dense, module.network)


@pytest.mark.parametrize("first", [True, False])
def test_rewrite_at_the_end_of_cycles_that_fill_the_training(make_classifier, make_trainer, data, first):
    """Listed before, it would rewrite a network whose masks are still to be minimized."""
    squeeze = SqueezeRelease(dense_epochs=1, cycles=1, shrink_epochs=0, masked_epochs=1, sparsity=[0.3])
    once, module = ChannelPruning(keep=0.7, of="channels"), make_classifier()
    trainer = make_trainer(2, *((once, squeeze) if first else (squeeze, once)))
    if first:
        with pytest.raises(ValueError, match=r"list ChannelPruning after SqueezeRelease"):
            trainer.fit(module, data)
    else:
        trainer.fit(module, data)
        assert [m["method"] for m in record_of(module).methods] == ["squeeze-release", "prune"]


def test_cycles_that_stop_early_leave_room(make_classifier, make_trainer, data):
    squeeze = SqueezeRelease(
        dense_epochs=1, cycles=3, shrink_epochs=0, masked_epochs=1, sparsity=[0.9], target_factor=1.2
    )
    module = make_classifier()
    make_trainer(5, squeeze, ChannelPruning(keep=0.7, of="channels", at_epoch=4)).fit(module, data)
    done = record_of(module).methods
    assert squeeze.stopped and [m["method"] for m in done] == ["squeeze-release", "prune"] and done[0]["epoch"] == 2


CANNOT = {
    "one layer": (nn.Linear(36, 9), lambda: LowRankFactorization(0.5), r"the network itself cannot be replaced"),
    "no width": (nn.Sequential(nn.Linear(36, 9)), lambda: ChannelPruning(0.5), r"at least one hidden width"),
    "no budget": (
        nn.Sequential(nn.Linear(36, 9)),
        lambda: LowRankFactorization(0.01),
        r"rank 1 in every layer still leaves",
    ),
}


@pytest.mark.parametrize("kind", list(CANNOT))
def test_what_cannot_be_done_at_the_end_fails_at_the_start(make_trainer, kind):
    network, callback, message = CANNOT[kind]
    module = project()
    module.net, trainer = network, make_trainer(3, callback())
    before = deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, loader())
    assert trainer.global_step == 0
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_epoch_that_is_not_reached_is_said(make_classifier, make_trainer, data):
    folding = ChannelFolding(keep=0.6, of="channels", at_epoch=3)
    trainer = make_trainer(5, folding, LowRankFactorization(keep=0.6), max_steps=3)
    module = make_classifier("conv")
    with pytest.warns(match=r"ChannelFolding\(at_epoch=3\): training ended after 1 epoch, and"):
        trainer.fit(module, data)
    assert [each["method"] for each in record_of(module).methods] == ["factorize"]
    assert "compressed/accuracy" in trainer.callback_metrics  # nothing more is to come: the network is what it ends as


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

    with pytest.raises(ValueError, match=r"Late: has no parameters when callbacks are set up; expected .* in __init__"):
        make_trainer(1, ChannelFolding(keep=0.6, of="channels")).fit(Late(), data)


def test_one_pattern_is_no_list():
    with pytest.raises(ValueError, match=r"ChannelFolding\(skip='\*attn\*'\): expected a list, skip=\['\*attn\*'\]"):
        ChannelFolding(skip="*attn*")
