"""Callbacks written outside the package, on its public base classes."""

from copy import deepcopy

import pytest
import torch

import lightning_fold as lf
from lightning_fold.callbacks import ChannelPruning, CompressionRun, RewriteCallback, RewriteOnce
from lightning_fold.storage.checkpoints import record_of
from tests.callbacks.conftest import assert_same_network


def shrink(network, inputs, optimizers):
    lf.sparsify(network, 0.5, criterion="connected", example_inputs=inputs, optimizers=optimizers)
    return lf.minimize(network, inputs, optimizers=optimizers)


class Shrink(RewriteOnce):
    """Once."""

    def __init__(self, at_epoch=-1):
        super().__init__("shrink", at_epoch=at_epoch)

    def change(self, batches):
        return shrink


class ShrinkEach(RewriteCallback):
    """Before each of several epochs."""

    def __init__(self, *epochs):
        super().__init__()
        self.left = list(epochs)

    @property
    def finished(self):
        return not self.left

    def begin_epoch(self, run: CompressionRun):
        if self.left and run.epoch == self.left[0]:
            self.rewrite(run, "shrink", shrink)
            del self.left[0]

    def unfinished(self, epochs):
        return f"ShrinkEach: {epochs} epochs, {self.left} were not reached"

    def state_dict(self):
        return super().state_dict() | {"left": list(self.left)}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.left = list(state_dict["left"])


OWN = {"end": (lambda: Shrink(), [3]), "epoch": (lambda: Shrink(1), [1]), "each": (lambda: ShrinkEach(1, 2), [1, 2])}


@pytest.mark.parametrize("name", OWN)
def test_resumed_run_ends_as_the_unbroken_one(make_classifier, make_trainer, run_and_save, data, name):
    build, epochs = OWN[name]
    unbroken, resumed = make_classifier(), make_classifier()
    folder = run_and_save(unbroken, 3, build())
    trainer = make_trainer(3, build())
    trainer.fit(resumed, data, ckpt_path=folder / "1.ckpt", weights_only=True)
    assert_same_network(unbroken.network, resumed.network)
    for module in (unbroken, resumed):
        assert [(each["method"], each["epoch"]) for each in record_of(module).methods] == [
            ("shrink", epoch) for epoch in epochs
        ]
    trained = [parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
    assert list(map(id, trained)) == list(map(id, resumed.parameters()))


def test_rewrites_as_by_hand(make_classifier, make_trainer, data):
    by_callback, by_hand = make_classifier(), make_classifier()
    trainer = make_trainer(1, Shrink())
    trainer.fit(by_callback, data)
    make_trainer(1).fit(by_hand, data)
    report = shrink(by_hand.network, torch.rand(4, 1, 6, 6), ())
    assert_same_network(by_callback.network, by_hand.network)
    assert record_of(by_callback).dense.parameters == report.parameters_before > report.parameters_after
    assert trainer.callback_metrics["compressed/accuracy"] == trainer.callback_metrics["accuracy/val"]


def test_failure_of_a_rewrite_comes_before_training(make_classifier, make_trainer, data):
    class Failing(Shrink):
        def change(self, batches):
            return lambda network, inputs, optimizers: network.no_such_layer

    module, trainer = make_classifier(), make_trainer(1, Failing())
    before = deepcopy(module.network.state_dict())
    with pytest.raises(AttributeError, match="no_such_layer"):
        trainer.fit(module, data)
    assert trainer.global_step == 0
    torch.testing.assert_close(module.network.state_dict(), before, rtol=0, atol=0)


def test_epochs_that_are_not_reached_are_told(make_classifier, make_trainer, data):
    with pytest.warns(match=r"ShrinkEach: 2 epochs, \[2\] were not reached"):
        make_trainer(5, ShrinkEach(1, 2), max_steps=6).fit(make_classifier(), data)


def test_built_in_callback_beside_it_waits_for_reserved_epochs(make_classifier, make_trainer, data):
    class Reserving(ShrinkEach):
        reserved_epochs = range(1, 3)

    with pytest.raises(ValueError, match=r"ChannelPruning\(at_epoch=2\): Reserving works .* epochs 1 to 2"):
        make_trainer(4, Reserving(1, 2), ChannelPruning(at_epoch=2)).fit(make_classifier(), data)


def test_what_must_be_overridden_is_named():
    class Nothing(RewriteCallback):
        pass

    class NoChange(RewriteOnce):
        pass

    with pytest.raises(TypeError, match=r"finished.*unfinished"):
        Nothing()
    with pytest.raises(TypeError, match="change"):
        NoChange("nothing")
