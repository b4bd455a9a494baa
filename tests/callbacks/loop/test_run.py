"""What a callback sees of a run."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from torch import nn

from lightning_fold.callbacks import CompressionRun
from lightning_fold.storage.checkpoints import network_of, record_of


def run_of(module=None, **trainer):
    return CompressionRun(SimpleNamespace(**trainer), module)


@pytest.mark.parametrize(("epochs", "place"), [(14, "epoch 3 of 14"), (None, "epoch 3"), (-1, "epoch 3")])
def test_place_names_the_number_of_epochs_where_it_is_known(epochs, place):
    assert run_of(current_epoch=3, max_epochs=epochs).place == place


@pytest.mark.parametrize(
    ("fn", "checking", "fitting"), [("fit", False, True), ("fit", True, False), ("validate", False, False)]
)
def test_sanity_check_and_validation_are_no_training(fn, checking, fitting):
    assert run_of(state=SimpleNamespace(fn=fn), sanity_checking=checking).fitting is fitting


def test_learning_rate_is_that_of_the_network_not_of_what_is_around_it(make_plain):
    module = make_plain()
    groups = [{"params": [module.scale], "lr": 7.0}, {"params": list(module.backbone.parameters()), "lr": 0.25}]
    run = run_of(module, optimizers=[torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=3.0), torch.optim.SGD(groups)])
    assert run.learning_rate == 0.25
    assert run_of(module, optimizers=run.optimizers[:1]).learning_rate == 0.0


def test_first_network_is_the_dense_one(make_plain):
    module = make_plain()
    run = run_of(module)
    assert run.dense is None
    run.remember_dense({"accuracy/val": 0.5})
    before = [parameter.detach().clone() for parameter in module.backbone.parameters()]
    nn.init.zeros_(next(module.backbone.parameters()))
    run.remember_dense({"accuracy/val": 0.1})
    assert run.dense is not None and run.dense.metrics == {"accuracy/val": 0.5}
    kept = run.dense.network_like(module.backbone).parameters()
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))


class Looking(lightning.Callback):
    """Keeps what a run shows before the first step and at the end."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.run = CompressionRun(trainer, pl_module)
            self.look, self.batch = self.run.look(batch, batch_idx), batch
            self.batches = self.run.inputs_of_batches(2)

    def on_train_end(self, trainer, pl_module):
        before = trainer.callback_metrics["accuracy/val"].clone()
        nn.init.zeros_(self.run.network.features[0].weight)
        self.run.validate()
        self.found = before, self.run.metric("accuracy/val"), self.run.metric("no/such")


def test_run_inside_fit(make_plain, make_trainer, data):
    module, looking = make_plain("conv"), Looking()
    make_trainer(1, looking).fit(module, data)
    run = looking.run
    assert run.network is module.backbone is network_of(module)
    assert run.record is record_of(module)
    assert run.example is looking.look
    torch.testing.assert_close(looking.look, (looking.batch[0],), rtol=0, atol=0)
    assert [len(images) for (images,) in looking.batches] == [32, 32]
    before, after, missing = looking.found
    (again,) = make_trainer(1).validate(module, data, verbose=False)
    assert after == pytest.approx(again["accuracy/val"]) != float(before)
    assert missing is None


def test_run_without_batches_has_no_inputs(make_plain):
    run = run_of(make_plain(), fit_loop=SimpleNamespace(_combined_loader=None))
    assert run.inputs_of_batches(3) is None
    with pytest.raises(AssertionError, match="at least one training batch"):
        _ = run.inputs
