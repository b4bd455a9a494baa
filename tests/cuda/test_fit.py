"""Callbacks in ``fit`` on the device: mixed precision, channels-last, compiled, and resumed bit for bit."""

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import lightning_fold as lf
from benchmarks.gpu_parts.sizes import size
from lightning_fold.callbacks import ChannelFolding, LowRankFactorization, SqueezeRelease
from lightning_fold.modules import Classifier
from tests.callbacks.projects import EPOCHS, loader, project
from tests.cuda.devices import on_devices

CALLBACKS = {
    "squeeze-release": partial(
        SqueezeRelease, dense_epochs=1, cycles=2, shrink_epochs=0, masked_epochs=1, sparsity=[0.5], group_penalty=[0.5]
    ),
    "fold": partial(ChannelFolding, **size(0.6, "channels"), at_epoch=2),
    "factorize": partial(LowRankFactorization, **size(0.6), at_epoch=2),
}
every_callback = on_devices("name", ["factorize"], CALLBACKS)  # on the CPU the other tests of callbacks do the rest


def classifier(*, channels_last=False):
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return Classifier(network, num_classes=3, optimizer=optimizer, channels_last=channels_last)


def make_trainer(device, name, *callbacks, **arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = bool(callbacks)
    accelerator = {"accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1}
    added = [CALLBACKS[name](), *callbacks]
    return lightning.Trainer(max_epochs=EPOCHS, callbacks=added, **accelerator, **quiet, **arguments)


def assert_trained(module, trainer, device, parameters):
    """Smaller, on the device, with one optimizer that holds its parameters, and weights that are numbers."""
    assert trainer.current_epoch == EPOCHS
    assert lf.count_parameters(module) < 0.95 * parameters
    held = [parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, module.parameters()))
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert trainer.strategy.root_device.type == device.type


@every_callback
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_precision(device, name, precision):
    module = classifier(channels_last=device.type == "cuda")
    parameters = lf.count_parameters(module)
    trainer = make_trainer(device, name, precision=precision)
    trainer.fit(module, loader(), loader())
    assert_trained(module, trainer, device, parameters)
    if precision == "16-mixed" and device.type == "cuda":  # Lightning takes bfloat16 for it on a CPU
        assert isinstance(trainer.scaler, torch.amp.GradScaler) and 0 < trainer.scaler.get_scale() < float("inf")


@pytest.mark.cuda  # torch's kernels for CPUs can write past the end of weights of few channels, channels last
@pytest.mark.parametrize("name", list(CALLBACKS))
def test_channels_last(name):
    module, device = classifier(channels_last=True), torch.device("cuda")
    parameters, trainer = lf.count_parameters(module), make_trainer(device, name)
    trainer.fit(module, loader(), loader())
    assert_trained(module, trainer, device, parameters)


@every_callback
def test_compiled(device, name):
    """With the default compiler on a GPU the network ends as without it; the CPU only traces."""
    plain, module = project(), project()
    make_trainer(device, name).fit(plain, loader(), loader())
    module.net = torch.compile(module.net, backend="inductor" if device.type == "cuda" else "eager")
    trainer = make_trainer(device, name)
    trainer.fit(module, loader(), loader())
    found = {key.replace("_orig_mod.", ""): value for key, value in module.state_dict().items()}
    torch.testing.assert_close(found, dict(plain.state_dict()), rtol=1e-2, atol=1e-3)


@every_callback
def test_resumed_run_is_the_unbroken_one(device, name, tmp_path):
    """To the bit, with deterministic algorithms, from before and after a rewrite."""
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    unbroken = classifier()
    try:
        make_trainer(device, name, every, deterministic=True).fit(unbroken, loader(), loader())
        for epoch in (1, 2):
            resumed = classifier()
            trainer = make_trainer(device, name, deterministic=True)
            trainer.fit(resumed, loader(), loader(), ckpt_path=tmp_path / f"{epoch}.ckpt", weights_only=True)
            torch.testing.assert_close(dict(resumed.state_dict()), dict(unbroken.state_dict()), rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)
