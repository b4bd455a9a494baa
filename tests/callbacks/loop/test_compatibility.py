"""What cannot follow a change of shapes is refused by name, before anything is trained."""

import lightning
import pytest
import torch
from lightning.pytorch import strategies
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch.optim.swa_utils import AveragedModel

from tests.callbacks.projects import CALLBACKS, EPOCHS, REWRITES, loader, project

REWRITING = [name for name in CALLBACKS if REWRITES[name]]
rewriting = pytest.mark.parametrize("name", REWRITING)


def refused(trainer, module, message):
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, loader(), loader())
    assert trainer.global_step == 0
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


@rewriting
@pytest.mark.parametrize("averaging", [WeightAveraging, EMAWeightAveraging, StochasticWeightAveraging])
@pytest.mark.parametrize("first", [True, False])
def test_averages_of_the_weights(make_trainer, name, averaging, first):
    average = averaging(swa_lrs=0.01) if averaging is StochasticWeightAveraging else averaging()
    callbacks = [average, CALLBACKS[name]()] if first else [CALLBACKS[name](), average]
    trainer = make_trainer(EPOCHS, *callbacks)
    refused(trainer, project(), rf"{averaging.__name__} keeps a second copy of the network.*Leave it out")


@pytest.mark.parametrize("name", [name for name in CALLBACKS if not REWRITES[name]])
def test_what_rewrites_nothing_goes_with_averages(make_trainer, name):
    make_trainer(2, CALLBACKS[name](), EMAWeightAveraging()).fit(project(), loader(), loader())


@rewriting
def test_average_inside_the_module(make_trainer, name):
    module = project()
    module.ema = AveragedModel(module.net)
    refused(make_trainer(EPOCHS, CALLBACKS[name]()), module, r"Project\.ema is an AveragedModel")


@rewriting
def test_lbfgs(make_trainer, name):
    module = project()
    module.configure_optimizers = lambda: torch.optim.LBFGS(module.parameters())
    refused(make_trainer(EPOCHS, CALLBACKS[name]()), module, r"LBFGS keeps the history.*torch\.optim\.AdamW")


@rewriting
def test_step_without_batches(make_trainer, name):
    class Iterates(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = project().net

        def training_step(self, dataloader_iter):
            return self.net(next(dataloader_iter)[0].flatten(1)).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    refused(make_trainer(EPOCHS, CALLBACKS[name]()), Iterates(), r"Iterates\.training_step takes dataloader_iter")


@rewriting
@pytest.mark.parametrize("kind", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharding_strategies(name, kind):
    """As they stand, without the devices they need."""
    base = getattr(strategies, kind)
    strategy = object.__new__(type(kind, (base,), {}))
    trainer = type("Trainer", (), {"strategy": strategy, "max_epochs": EPOCHS, "fast_dev_run": False})()
    with pytest.raises(ValueError, match=rf"Trainer\(strategy={kind}\) keeps its own copy.*strategy='ddp'"):
        CALLBACKS[name]().setup(trainer, project(), "fit")


@rewriting
@pytest.mark.slow
def test_processes_that_send_weights_back(make_trainer, name):
    trainer = make_trainer(EPOCHS, CALLBACKS[name](), strategy="ddp_fork", devices=1)
    with pytest.raises(Exception, match=r"ddp_fork.*send only weights back.*expected strategy='ddp'"):
        trainer.fit(project(), loader(), loader())
