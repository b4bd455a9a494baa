"""What all callbacks that rewrite once share: ChannelFolding, ChannelPruning, LowRankFactorization."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import (
    ChannelFolding,
    ChannelPruning,
    CompressionRun,
    LowRankFactorization,
    SqueezeRelease,
)
from lightning_fold.storage.checkpoints import record_of
from tests.callbacks.conftest import assert_same_network
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


def test_rewrite_is_done_once(make_classifier, make_trainer, data):
    module, callback = make_classifier(), ChannelPruning(keep=0.7, of="channels")
    make_trainer(1, callback).fit(module, data)
    once = deepcopy(module.network)
    callback.finish(CompressionRun(module.trainer, module))
    assert_same_network(once, module.network)


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
    assert (
        squeeze.state.stopped and [m["method"] for m in done] == ["squeeze-release", "prune"] and done[0]["epoch"] == 2
    )


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
