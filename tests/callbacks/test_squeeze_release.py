from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from itertools import pairwise

import lightning
import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import CompressionMonitor, LowRankFactorization, SqueezeRelease
from lightning_fold.layers import SelectFeatures
from lightning_fold.modules import Classifier
from lightning_fold.regularizers import GroupSparsity
from lightning_fold.storage.checkpoints import record_of
from tests.callbacks.conftest import assert_same_network

SETTINGS = {
    "dense_epochs": 1,
    "cycles": 2,
    "shrink_epochs": 1,
    "masked_epochs": 1,
    "sparsity": [0.6, 0.4],
    "group_penalty": [1.0],
}


def squeeze(**arguments):
    return SqueezeRelease(**{**SETTINGS, **arguments})


class Watcher(lightning.Callback):
    """Calls a function with trainer and module in one hook."""

    def __init__(self, **hooks):
        for name, hook in hooks.items():
            setattr(self, name, hook)


def zeros(network):
    return {name: weight == 0 for name, weight in network.named_parameters() if weight.dim() > 1}


def parameters_of(trainer):
    return [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]


# Schedule


def test_rewrites_come_at_the_ends_of_cycles_and_release_only_between_them(make_classifier, make_trainer, data):
    callback, monitor, module = squeeze(), CompressionMonitor(), make_classifier()
    calls = []
    released = lambda *_: calls.append(trainer.current_epoch) or original(*_)  # noqa: E731
    original, callback._release = callback._release, lambda *args: released(*args)
    trainer = make_trainer(7, callback, monitor)
    trainer.fit(module, data)
    assert calls == [3]
    assert [(m["method"], m["epoch"]) for m in record_of(module).methods] == [
        ("squeeze-release", 3),
        ("squeeze-release", 5),
    ]
    sizes = [row["parameters"] for row in monitor.history]
    changed = [epoch for epoch, (before, after) in enumerate(pairwise(sizes), 1) if before != after]
    assert changed == [3, 5]
    assert [m["parameters"] for m in record_of(module).methods] == [sizes[3], sizes[5]]


def test_released_weights_are_non_zero_and_final_ones_dense(make_classifier, make_trainer, data):
    """After each rewrite the next optimizer step finds the zeros that minimize left filled with noise."""
    counts = {}

    def count(trainer, module, batch, batch_idx):
        if batch_idx == 0:
            counts[trainer.current_epoch] = sum(int(zero.sum()) for zero in zeros(module.network).values())

    trainer = make_trainer(6, squeeze(), Watcher(on_train_batch_start=count))
    trainer.fit(make_classifier(), data)
    assert counts[2] > 50
    assert counts[4] > 10
    assert counts[3] == 0
    assert trainer.callback_metrics["accuracy/val"] > 0.5


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    ],
)
def test_pruned_weights_stay_zero_until_the_rewrite(make_classifier, make_trainer, data, network, optimizer):
    expected, seen = {}, []

    def before(trainer, module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 0:
            expected.update(zeros(module.network))

    def after(trainer, module, *_):
        if trainer.current_epoch in (2, 3):
            seen.append(all(bool((~expected[n] | zero).all()) for n, zero in zeros(module.network).items()))

    module = make_classifier(network, optimizer=optimizer)
    callback = squeeze(cycles=1, masked_epochs=2, group_penalty=[0.0])
    make_trainer(4, callback, Watcher(on_train_batch_start=before, on_train_batch_end=after)).fit(module, data)
    total = sum(zero.numel() for zero in expected.values())
    assert sum(int(zero.sum()) for zero in expected.values()) == round(0.6 * total)
    assert seen == [True] * 6


# What a rewrite does


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_callback_does_what_the_functions_do(make_classifier, make_trainer, data, network):
    """The network after the last rewrite is minimize of the masked one, bit for bit."""
    found = {}

    def masked(trainer, module):
        if trainer.current_epoch == 2:
            found["masked"] = deepcopy(module.network)

    def rewritten(trainer, module, batch, batch_idx):
        if trainer.current_epoch == 3 and batch_idx == 0:
            found["batch"], found["rewritten"] = batch[0], deepcopy(module.network)

    module = make_classifier(network)
    watch = Watcher(on_train_epoch_end=masked, on_train_batch_start=rewritten)
    make_trainer(4, squeeze(cycles=1), watch).fit(module, data)
    before = deepcopy(found["masked"]).eval()(found["batch"])
    report = lf.minimize(found["masked"], found["batch"])
    assert report.parameters_after < report.parameters_before
    assert_same_network(found["masked"], found["rewritten"])
    torch.testing.assert_close(found["rewritten"].eval()(found["batch"]), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_optimizer_and_schedule_go_on(make_classifier, make_trainer, data, network):
    """Exactly the module's parameters, moments cut to what survived, step counts and learning rate unbroken."""
    rates, steps = [], []

    def check(trainer, module, *_):
        (optimizer,) = trainer.optimizers
        assert list(map(id, parameters_of(trainer))) == list(map(id, module.parameters()))
        for parameter in module.parameters():
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        steps.append({float(optimizer.state[p]["step"]) for p in module.parameters()})
        rates.append(optimizer.param_groups[0]["lr"])

    module = make_classifier(network)
    trainer = make_trainer(6, squeeze(), Watcher(on_train_batch_end=check))
    trainer.fit(module, data)
    assert steps == [{float(step)} for step in range(1, 19)]
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = module.lr_scheduler(reference)
    for epoch in range(6):
        assert rates[3 * epoch : 3 * epoch + 2] == pytest.approx([reference.param_groups[0]["lr"]] * 2)
        reference.step()
        schedule.step()


def test_moments_of_survivors_are_carried(make_classifier, make_trainer, data):
    """The moments after the rewrite are entries of those before it: those of the weights that survived."""
    moments = {}

    def collect(name, epoch):
        def hook(trainer, module, *_):
            if trainer.current_epoch == epoch and name not in moments:
                state = trainer.optimizers[0].state
                parameters = dict(module.network.named_parameters())
                moments[name] = {
                    key: (p.detach().clone(), state[p]["exp_avg"].clone()) for key, p in parameters.items()
                }

        return hook

    watch = Watcher(on_train_epoch_end=collect("before", 2), on_train_batch_start=collect("after", 3))
    make_trainer(4, squeeze(cycles=1), watch).fit(make_classifier(), data)
    for name, (weight, moment) in moments["after"].items():
        old_weight, old_moment = moments["before"][name]
        pairs = dict(zip(old_weight.flatten().tolist(), old_moment.flatten().tolist(), strict=True))
        for value, found in zip(weight.flatten().tolist(), moment.flatten().tolist(), strict=True):
            if value != 0 and not name.endswith("bias"):
                assert pairs[value] == found
    assert sum(w.numel() for w, _ in moments["after"].values()) < sum(w.numel() for w, _ in moments["before"].values())


# Repeatability


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_same_seed_gives_the_same_network(make_classifier, make_trainer, data, network):
    one, same, other = make_classifier(network), make_classifier(network), make_classifier(network)
    for module, seed in ((one, 0), (same, 0), (other, 1)):
        make_trainer(5, squeeze(seed=seed)).fit(module, data)
    assert_same_network(one.network, same.network)
    assert not torch.equal(next(one.network.parameters()), next(other.network.parameters()))


SPECIAL = {"mlp": ({"distillation": 0.5}, {"select_inputs": True}), "conv": ({}, {"max_accuracy_drop": 0.9})}


@pytest.fixture(scope="module", params=["mlp", "conv"])
def unbroken_run(request, make_classifier, run_and_save):
    module, monitor = make_classifier(request.param, **SPECIAL[request.param][0]), CompressionMonitor()
    folder = run_and_save(module, 6, squeeze(**SPECIAL[request.param][1]), monitor)
    return request.param, module, monitor.history, folder


@pytest.mark.parametrize("stopped_after", range(6))
def test_resumed_run_ends_as_the_unbroken_one(make_classifier, make_trainer, data, unbroken_run, stopped_after):
    """After an epoch of: dense, shrink, masked, shrink (with noise), masked, final."""
    network, unbroken, history, folder = unbroken_run
    resumed, later = make_classifier(network, **SPECIAL[network][0]), CompressionMonitor()
    trainer = make_trainer(6, squeeze(**SPECIAL[network][1]), later)
    trainer.fit(resumed, data, ckpt_path=folder / f"{stopped_after}.ckpt", weights_only=True)
    assert_same_network(unbroken.network, resumed.network)
    assert history == later.history
    assert record_of(unbroken).methods == record_of(resumed).methods
    assert vars(record_of(unbroken).dense)["metrics"] == vars(record_of(resumed).dense)["metrics"]
    assert trainer.current_epoch == len(history) == 6


def test_run_that_ends_masked_is_minimized_also_when_resumed_after_its_end(
    make_classifier, make_trainer, data, every_epoch, tmp_path
):
    unbroken, resumed = make_classifier(), make_classifier()
    make_trainer(3, squeeze(cycles=1), every_epoch).fit(unbroken, data)
    make_trainer(3, squeeze(cycles=1)).fit(resumed, data, ckpt_path=tmp_path / "all" / "2.ckpt", weights_only=True)
    assert lf.count_parameters(resumed.network) < lf.count_parameters(make_classifier().network)
    assert_same_network(unbroken.network, resumed.network)


def test_channels_last_through_cycles_and_a_restart(make_classifier, make_trainer, data, every_epoch, tmp_path):
    """The same function in another memory format, which rewrites and checkpoints keep."""
    plain, unbroken, resumed = (make_classifier("conv", channels_last=last) for last in (False, True, True))
    make_trainer(4, squeeze(cycles=1)).fit(plain, data)
    make_trainer(4, squeeze(cycles=1), every_epoch).fit(unbroken, data)
    last = tmp_path / "all" / "2.ckpt"
    make_trainer(4, squeeze(cycles=1)).fit(resumed, data, ckpt_path=last, weights_only=True)
    assert_same_network(unbroken.network, resumed.network)
    torch.testing.assert_close(unbroken.network.state_dict(), plain.network.state_dict(), rtol=1e-3, atol=1e-4)
    for network in (unbroken.network, resumed.network):
        weights = [parameter for parameter in network.parameters() if parameter.dim() == 4]
        assert len(weights) == 2
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_run_stopped_early_in_a_cycle_is_minimized_without_noise(make_classifier, make_trainer, data):
    module = make_classifier()
    make_trainer(5, squeeze(), max_steps=8).fit(module, data)
    assert [m["epoch"] for m in record_of(module).methods] == [3]
    sparsity = lf.sparsity_of(module.network)
    assert 0 < sparsity < 0.6
    assert lf.count_parameters(module.network) < lf.count_parameters(make_classifier().network)


# The limit on the accuracy


def with_accuracies(module, values):
    """Let a module log these validation accuracies instead of its own; its test accuracy is NaN."""

    def validation_step(batch, batch_idx):
        module.log("accuracy/val", torch.tensor(values[module.trainer.current_epoch]))

    module.validation_step = validation_step
    return module


def test_cycle_that_costs_too_much_brings_the_last_good_network_back(make_plain, make_trainer, data):
    module = with_accuracies(make_plain(), [0.9, 0.9, 0.88, 0.9, 0.5, 0.9, 0.9])
    good, at = {}, {}

    def keep(trainer, module, batch, batch_idx):
        if batch_idx == 0:
            at[trainer.current_epoch] = deepcopy(module.backbone)

    callback = squeeze(max_accuracy_drop=0.05, max_drift=0.0, cycles=3)
    trainer = make_trainer(7, callback, Watcher(on_train_batch_start=keep))
    trainer.fit(module, data)
    good["rewritten"], good["restored"] = at[3], at[5]
    assert callback.state.stopped
    assert callback.phase(6) == "final"
    assert [m["epoch"] for m in record_of(module).methods] == [3]
    torch.testing.assert_close(at[5].state_dict(), callback.state.last_good.state_dict, rtol=0, atol=0)
    assert lf.count_parameters(at[5]) == record_of(module).methods[0]["parameters"]
    assert list(map(id, parameters_of(trainer))) == list(map(id, module.parameters()))
    assert all(not torch.equal(a, b) for a, b in zip(at[5].parameters(), at[6].parameters(), strict=True))


def test_first_cycle_that_costs_too_much_brings_the_dense_network_back(make_plain, make_trainer, data):
    module = with_accuracies(make_plain(), [0.9, 0.9, 0.2, 0.9, 0.9])
    at = {}

    def keep(trainer, module, batch, batch_idx):
        at.setdefault(trainer.current_epoch, deepcopy(module.backbone.state_dict()))

    callback = squeeze(max_accuracy_drop=0.05)
    make_trainer(5, callback, Watcher(on_train_batch_start=keep)).fit(module, data)
    torch.testing.assert_close(at[3], at[1], rtol=0, atol=0)
    assert record_of(module).methods == []
    assert lf.count_parameters(module.backbone) == record_of(module).dense.parameters


@pytest.mark.parametrize(("last", "restored"), [(0.9, False), (0.5, True)])
def test_limit_holds_at_the_end_of_training(make_plain, make_trainer, data, last, restored):
    module = with_accuracies(make_plain(), [0.9, 0.9, 0.9, 0.9, last, 0.93])
    callback = squeeze(cycles=1, max_accuracy_drop=0.05)
    trainer = make_trainer(5, callback)
    with pytest.warns(match="last good network was restored") if restored else nullcontext():
        trainer.fit(module, data)
    state = module.backbone.state_dict()
    assert (
        all(torch.equal(state[name], value) for name, value in callback.state.last_good.state_dict.items()) == restored
    )
    assert (callback.report is None) == restored
    shown = float(trainer.callback_metrics["compressed/accuracy"])  # what came back is validated
    assert shown == pytest.approx(0.93 if restored else last)


def test_dense_network_that_comes_back_at_the_end_is_validated(make_plain, make_trainer, data):
    """The only cycle costs too much: what is logged last is of the dense network, and nothing is compressed."""
    module = with_accuracies(make_plain(), [0.9, 0.9, 0.2, 0.91])
    trainer = make_trainer(3, squeeze(cycles=1, max_accuracy_drop=0.05))
    trainer.fit(module, data)
    assert record_of(module).methods == []
    assert float(trainer.callback_metrics["accuracy/val"]) == pytest.approx(0.91)
    assert torch.isnan(trainer.callback_metrics["compressed/accuracy"])


@pytest.mark.parametrize(("at_epoch", "methods"), [(4, ["squeeze-release"]), (1, ["factorize", "squeeze-release"])])
def test_rewrite_that_is_taken_back_is_no_longer_listed(make_plain, make_trainer, data, at_epoch, methods):
    """The low rank that came after the last good cycle goes with its network."""
    module = with_accuracies(make_plain(), [0.9, 0.9, 0.9, 0.9, 0.5, 0.9])
    low_rank = LowRankFactorization(keep=0.7, at_epoch=at_epoch)
    callbacks = [squeeze(cycles=1, max_accuracy_drop=0.05), low_rank]
    make_trainer(5, *(callbacks if at_epoch == 4 else callbacks[::-1])).fit(module, data)
    assert [each["method"] for each in record_of(module).methods] == methods


@pytest.mark.parametrize("settings", [{"check_val_every_n_epoch": 2}, {"limit_val_batches": 0}])
def test_limit_needs_a_validation_after_every_epoch(make_classifier, make_trainer, data, settings):
    (found,) = (f"{name}={value}" for name, value in settings.items())
    with pytest.raises(ValueError, match=rf"max_accuracy_drop=0\.1\): expected a validation.*{found}"):
        make_trainer(5, squeeze(max_accuracy_drop=0.1), **settings).fit(make_classifier(), data)


def test_training_that_ends_before_its_cycles_is_said(make_classifier, make_trainer, data):
    trainer = make_trainer(5, squeeze(cycles=2), max_steps=3)
    with pytest.warns(match=r"SqueezeRelease\(cycles=2\): training ended after 1 epoch, with 0 cycles done"):
        trainer.fit(make_classifier(), data)


def test_limit_reads_validation_and_never_the_test_set(make_plain, make_trainer, data):
    module = with_accuracies(make_plain(), [0.9] * 5)
    refused = lambda *_: pytest.fail("the test set was read")  # noqa: E731
    data.test_dataloader = module.test_step = refused
    callback = squeeze(cycles=1, max_accuracy_drop=0.05)
    make_trainer(4, callback).fit(module, data)
    assert callback.metric == pytest.approx(0.9)
    assert len(record_of(module).methods) == 1


def test_limit_needs_its_metric(make_classifier, make_trainer, data):
    with pytest.raises(ValueError, match=r"max_accuracy_drop=0\.1, monitor='accuracy'\): no such metric"):
        make_trainer(5, squeeze(max_accuracy_drop=0.1, monitor="accuracy")).fit(make_classifier(), data)


# Options


def test_cycles_stop_at_the_target(make_classifier, make_trainer, data):
    """One channel of the widest layer costs at most 36 + 1 + 10 parameters; the factor overshoots by less."""
    module = make_classifier()
    dense = lf.count_parameters(module.network)
    callback = squeeze(cycles=4, target_factor=1.5, sparsity=[0.9], group_penalty=[0.0])
    make_trainer(9, callback).fit(module, data)
    left = lf.count_parameters(module.network)
    assert dense / left >= 1.5
    assert dense / (left + 36 + 1 + 12) < 1.5
    assert callback.state.stopped
    assert len(record_of(module).methods) == 1


def test_unread_inputs_are_dropped(make_classifier, make_trainer, data):
    module = make_classifier()
    make_trainer(4, squeeze(cycles=1, select_inputs=True, sparsity=[0.9])).fit(module, data)
    (selection,) = [m for m in module.network.modules() if isinstance(m, SelectFeatures)]
    following = next(m for m in module.network.modules() if isinstance(m, nn.Linear))
    assert following.in_features == len(selection.index) < 36
    assert {id(p) for p in module.parameters()} == {id(p) for p in parameters_of(module.trainer)}


@pytest.mark.parametrize(("accumulate", "times"), [(1, 3), (2, 2), (3, 1)])
def test_penalty_comes_once_for_each_optimizer_step(
    make_classifier, make_trainer, data, monkeypatch, accumulate, times
):
    thresholds = []
    monkeypatch.setattr(GroupSparsity, "shrink", lambda self, threshold: thresholds.append(threshold))
    module = make_classifier(lr_scheduler=None)
    trainer = make_trainer(3, squeeze(cycles=1, group_penalty=[2.0]), accumulate_grad_batches=accumulate)
    trainer.fit(module, data)
    assert thresholds == pytest.approx([0.02 * 2.0] * times * 2)
    assert trainer.global_step == 3 * times


def test_penalty_of_a_resumed_run_waits_for_its_first_step(
    make_classifier, make_trainer, run_and_save, data, monkeypatch
):
    """Three batches, steps after the second and the third: nothing is shrunk after the first."""
    folder, steps = run_and_save(make_classifier(), 3, squeeze(cycles=1)), []
    monkeypatch.setattr(GroupSparsity, "shrink", lambda self, threshold: steps.append(trainer.global_step))
    trainer = make_trainer(3, squeeze(cycles=1), accumulate_grad_batches=2)
    trainer.fit(make_classifier(), data, ckpt_path=folder / "0.ckpt", weights_only=True)
    assert steps == [4, 5, 6, 7]


def test_bfloat16_runs(make_classifier, make_trainer, data):
    module = make_classifier("conv")
    make_trainer(5, squeeze(), precision="bf16-mixed").fit(module, data)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert lf.count_parameters(module.network) == record_of(module).methods[-1]["parameters"]


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_module_that_knows_nothing_of_the_package(make_plain, make_trainer, data, every_epoch, tmp_path, network):
    unbroken, resumed, tested = (make_plain(network) for _ in range(3))
    trainer = make_trainer(5, squeeze(), every_epoch)
    trainer.fit(unbroken, data)
    assert list(map(id, parameters_of(trainer))) == list(map(id, unbroken.parameters()))
    (expected,) = trainer.test(unbroken, data, verbose=False)
    saved = tmp_path / "all"
    make_trainer(5, squeeze()).fit(resumed, data, ckpt_path=saved / "2.ckpt", weights_only=True)
    assert_same_network(unbroken.backbone, resumed.backbone)
    (found,) = make_trainer(5, squeeze()).test(
        tested, data, ckpt_path=saved / "4.ckpt", weights_only=True, verbose=False
    )
    assert expected == found


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dense_epochs": 0}, r"dense_epochs=0\): expected at least 1"),
        ({"cycles": 0}, r"cycles=0\): expected at least 1"),
        ({"shrink_epochs": -1}, r"shrink_epochs=-1\): expected at least 0"),
        ({"masked_epochs": 0}, r"masked_epochs=0\): expected at least 1"),
        ({"sparsity": [0.5, 1.0]}, r"sparsity=1\.0\): expected a share in \[0, 1\)"),
        ({"sparsity": [-0.1]}, r"sparsity=-0\.1\)"),
        ({"sparsity": []}, r"expected at least one value each"),
        ({"group_penalty": []}, r"expected at least one value each"),
        ({"group_penalty": [-1.0]}, r"penalties of at least 0"),
        ({"criterion": "luck"}, r"criterion='luck'\): expected one of 'magnitude', 'connected'"),
        ({"max_drift": 1.0}, r"max_drift=1\.0\): expected a share in \[0, 1\)"),
        ({"target_factor": 0.9}, r"target_factor=0\.9\): expected at least 1"),
        ({"sparsity": 0.5}, r"SqueezeRelease\(sparsity=0\.5\): expected a list, sparsity=\[0\.5\]"),
        ({"max_accuracy_drop": 1.1}, r"max_accuracy_drop=1\.1\): expected a share in \[0, 1\]"),
        ({"max_accuracy_drop": -0.1}, r"max_accuracy_drop=-0\.1\)"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SqueezeRelease(**arguments)


def test_too_few_epochs_are_refused(make_classifier, make_trainer, data):
    with pytest.raises(ValueError, match=r"needs 5 epochs, found Trainer\(max_epochs=4\)"):
        make_trainer(4, squeeze()).fit(make_classifier(), data)
    make_trainer(4, squeeze(), fast_dev_run=1).fit(make_classifier(), data)


def test_network_without_layers_to_prune_is_refused_at_once(make_trainer, data):
    module = Classifier(nn.Sequential(nn.Flatten(), nn.LayerNorm(36), nn.AdaptiveAvgPool1d(3)), num_classes=3)
    with pytest.raises(ValueError, match="Sequential has no Linear or convolution weight"):
        make_trainer(5, squeeze()).fit(module, data)


class Branching(nn.Linear):
    """Cannot be traced: what it computes depends on the data."""

    def forward(self, x):
        x = x.flatten(1)
        return super().forward(x if x.sum() > 0 else -x)


def test_network_that_cannot_be_read_is_refused_before_it_is_trained(make_trainer, data):
    module = Classifier(Branching(36, 3), num_classes=3)
    before, trainer = deepcopy(module.network.state_dict()), make_trainer(5, squeeze())
    with pytest.raises(ValueError, match="Branching"):
        trainer.fit(module, data)
    assert trainer.global_step == 0
    torch.testing.assert_close(module.network.state_dict(), before, rtol=0, atol=0)


def test_unknown_network_is_refused(make_classifier, make_trainer, data):
    with pytest.raises(ValueError, match=r"module='nett': expected a submodule of Classifier .* has \['network'\]"):
        make_trainer(5, squeeze(module="nett")).fit(make_classifier(), data)


def test_strategies_with_their_own_copy_of_the_parameters_are_refused(make_classifier, make_trainer):
    class Sharded(lightning.pytorch.strategies.FSDPStrategy):
        def __init__(self):
            pass

    class Trainer:
        strategy = Sharded()
        max_epochs = 9

    with pytest.raises(ValueError, match=r"Trainer\(strategy=Sharded\).*expected one device or DDP"):
        squeeze().setup(Trainer(), make_classifier(), "fit")
