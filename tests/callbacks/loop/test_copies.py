"""Averages of the weights, however they are held, are refused by name; a teacher is not."""

import copy
import warnings

import lightning
import pytest
import torch
from torch import nn

from lightning_fold.callbacks import ChannelPruning, SqueezeRelease
from tests.callbacks.conftest import TinyData
from tests.callbacks.projects import EPOCHS, loader, project

ADVICE = "would not follow the network's change of shape. Leave it out"


class Shadow:
    """An average as many write it: an object with a dict of tensors."""

    def __init__(self, network):
        self.shadow = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


class Buffers(nn.Module):
    """An average in buffers, whose names cannot have dots."""

    def __init__(self, network):
        super().__init__()
        self.register_buffer("decay", torch.tensor(0.9))
        for name, parameter in network.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach().clone())


def of_timm(network):
    return pytest.importorskip("timm.utils").ModelEmaV2(network)


def follow_network(average, network):
    tensors = [*average.parameters(), *average.buffers()][-len(list(network.parameters())) :]
    for mean, parameter in zip(tensors, network.parameters(), strict=True):
        mean.data.lerp_(parameter.data, 0.1)  # ``data`` leaves torch's count of changes as it was


TENSORS = {
    "state dict": ("Project.average", lambda net: copy.deepcopy(net.state_dict())),
    "nested": ("Project.average", lambda net: {"decay": 0.9, "values": [copy.deepcopy(net.state_dict())]}),
    "list": ("Project.average", lambda net: [parameter.detach().clone() for parameter in net.parameters()]),
    "object": ("Project.average.shadow", Shadow),
}
NETWORKS = {"copy": copy.deepcopy, "list of one": lambda net: [copy.deepcopy(net)], "buffers": Buffers, "timm": of_timm}


def trainer_of(make_trainer, *callbacks, **options):
    return make_trainer(EPOCHS, ChannelPruning(keep=0.6, of="channels", at_epoch=2), *callbacks, **options)


@pytest.mark.parametrize("kind", list(TENSORS))
def test_tensors_in_the_module(make_trainer, kind):
    module, (name, make) = project(), TENSORS[kind]
    module.average = make(module.net)
    trainer = trainer_of(make_trainer)
    with pytest.raises(ValueError, match=rf"ChannelPruning: {name} holds a copy of the network's.*{ADVICE}"):
        trainer.fit(module, loader())
    assert trainer.global_step == 0


@pytest.mark.parametrize("kind", list(TENSORS))
def test_tensors_in_a_callback_from_the_first_step_on(make_trainer, kind):
    module, (_, make) = project(), TENSORS[kind]

    class Average(lightning.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            self.average = make(pl_module.net)

    trainer = trainer_of(make_trainer, Average())
    with pytest.raises(ValueError, match=rf"Average keeps a second copy of the network.*{ADVICE}"):
        trainer.fit(module, loader())
    assert trainer.global_step <= 1


@pytest.mark.parametrize("kind", list(NETWORKS))
@pytest.mark.parametrize("begins", [0, 1])
def test_network_that_follows_the_other(make_trainer, kind, begins):
    """Seen after the first step that moves it, before shapes change, or at the start of the next epoch."""
    module = project()
    module.average = NETWORKS[kind](module.net)
    (average,) = module.average if isinstance(module.average, list) else [module.average]
    module.on_train_batch_end = lambda *_: module.current_epoch < begins or follow_network(average, module.net)
    trainer = trainer_of(make_trainer)
    with pytest.raises(ValueError, match=rf"Project\.average changes though no optimizer trains it.*{ADVICE}"):
        trainer.fit(module, loader())
    assert trainer.global_step == (1 if begins == 0 else 6)
    assert [layer.out_features for layer in module.net[::2]] == [16, 12, 3]


def distill(module):
    """A training step that also learns from a frozen copy of the network."""
    module.teacher = copy.deepcopy(module.net).requires_grad_(False)

    def training_step(batch, batch_idx):
        images = batch[0].flatten(1)
        return nn.functional.mse_loss(module.net(images), module.teacher(images)) * module.temperature

    module.training_step = training_step
    return module


def test_teacher_is_named_once_and_goes_on(make_trainer):
    module = distill(project())
    before = copy.deepcopy(module.teacher.state_dict())
    refers = lightning.Callback()
    refers.module = module  # a reference to the module is no copy, nor is the teacher inside
    with pytest.warns(UserWarning, match=r"ChannelPruning: Project\.teacher keeps its shapes") as found:
        trainer_of(make_trainer, refers).fit(module, loader())
    assert sum("Project.teacher" in str(warning.message) for warning in found) == 1
    assert module.net[0].out_features < 16
    torch.testing.assert_close(module.teacher.state_dict(), before, rtol=0, atol=0)


def test_twin_with_an_optimizer_of_its_own_is_no_copy(make_trainer):
    module = project()
    module.twin = copy.deepcopy(module.net)
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch, batch_idx) + module.twin(batch[0].flatten(1)).mean()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer_of(make_trainer).fit(module, loader())
    assert not any("twin" in str(warning.message) for warning in found)
    assert (module.net[0].out_features < 16, module.twin[0].out_features) == (True, 16)


def test_list_of_the_networks_own_parameters_is_named(make_trainer):
    module = project()
    module.decayed = [module.net[0].weight]
    with pytest.warns(UserWarning, match=r"Project\.decayed holds parameters of the network.*Look them up"):
        trainer_of(make_trainer).fit(module, loader())
    assert module.decayed[0] is not module.net[0].weight


def test_average_may_begin_after_the_last_change_of_shape(make_trainer):
    module = project()

    class Late(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.current_epoch >= 2:
                self.average = copy.deepcopy(pl_module.net.state_dict())

    late = Late()
    trainer_of(make_trainer, late).fit(module, loader())
    assert module.net[0].out_features < 16
    torch.testing.assert_close(late.average, module.net.state_dict(), rtol=0, atol=0)


def test_teacher_of_the_classifier_is_known(make_classifier, make_trainer):
    module = make_classifier(distillation=0.5)
    squeeze = SqueezeRelease(dense_epochs=1, cycles=1, shrink_epochs=1, masked_epochs=1, sparsity=[0.5])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        make_trainer(4, squeeze).fit(module, TinyData(batch_size=32))
    assert module.teacher() is not None and not any("keeps its shapes" in str(warning.message) for warning in found)
