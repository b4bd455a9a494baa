"""Every callback with everything a Trainer can do: it works, or it is refused by name (test_refusals.py)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

import lightning_fold as lf
from lightning_fold.storage.checkpoints import record_of
from tests.callbacks.projects import CALLBACKS, EPOCHS, REWRITES, loader, project

every_callback = pytest.mark.parametrize("name", list(CALLBACKS))
TRAINERS = {
    "plain": {},
    "accumulation": {"accumulate_grad_batches": 2},
    "clip by norm": {"gradient_clip_val": 0.1},
    "clip by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16": {"precision": "bf16-mixed"},
    "fp16": {"precision": "16-mixed"},  # Lightning takes bf16 for it on a CPU
    "double": {"precision": "64-true"},
}


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def trained(trainer):
    return [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]


def assert_compressed(name, module, trainer):
    """Smaller by what the report says, every parameter once in an optimizer, and state of its shape."""
    assert trainer.current_epoch == EPOCHS
    before, after = lf.count_parameters(project().net), lf.count_parameters(module.net)
    methods = record_of(module).methods
    assert [(m["method"], m["epoch"]) for m in methods] == [(name, epoch) for epoch in REWRITES[name]]
    assert not methods or methods[-1]["parameters"] == after
    assert after == before if not REWRITES[name] else after < 0.9 * before
    assert sorted(map(id, trained(trainer))) == sorted(map(id, module.parameters()))
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            assert all(v.shape == parameter.shape for v in state.values() if torch.is_tensor(v) and v.dim())


def moved(module, trainer, name):
    """Whether every weight moves when the trained module takes another step."""
    before = [p.detach().clone() for p in module.parameters()]
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
    images, targets = next(iter(loader()))
    images = images.to(next(module.parameters()).dtype)
    torch.nn.functional.cross_entropy(module.temperature * module.net(images.flatten(1) * 2), targets).backward()
    for optimizer in trainer.optimizers:
        optimizer.step()
    return all(not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


@every_callback
@pytest.mark.parametrize(
    "setting", ["accumulation", "clip by norm", "bf16", *slow("plain", "clip by value", "fp16", "double")]
)
def test_trainer_settings(make_trainer, name, setting):
    module, trainer = project(), make_trainer(EPOCHS, CALLBACKS[name](), **TRAINERS[setting])
    trainer.fit(module, loader(), loader())
    assert_compressed(name, module, trainer)
    assert trainer.global_step == EPOCHS * (2 if setting == "accumulation" else 3)
    assert moved(module, trainer, name)


@every_callback
def test_scaled_gradients_of_half_precision(make_trainer, name):
    """fp16 with a GradScaler: the network is the same however much it scales; a step that overflows is left out."""
    found = []
    for scale in (2.0**4, 2.0**10, 2.0**24):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-14, growth_interval=1000)
        module, plugin = project(), MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        trainer = make_trainer(EPOCHS, CALLBACKS[name](), plugins=[plugin])
        trainer.fit(module, loader(), loader())
        assert_compressed(name, module, trainer)
        found.append((scaler.get_scale(), dict(module.state_dict())))
    assert [scale for scale, _ in found] == [2.0**4, 2.0**10, 2.0**10]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-3)
    assert all(bool(value.isfinite().all()) for value in found[2][1].values())


@every_callback
@pytest.mark.parametrize("optimization", ["several", "manual", *slow("steps", "plateau")])
def test_optimizers_and_schedulers(make_trainer, name, optimization):
    """The learning rates at the end are those of a training without the callback."""
    rates = []
    for callbacks in ([], [CALLBACKS[name]()]):
        module, trainer = project(optimization), make_trainer(EPOCHS, *callbacks)
        trainer.fit(module, loader(), loader())
        rates.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])
    assert_compressed(name, module, trainer)
    assert moved(module, trainer, name)
    if optimization != "plateau":  # which follows the accuracy, and that may differ
        assert rates[0] == rates[1]


@every_callback
@pytest.mark.parametrize("optimization", ["plain", *slow("several")])
def test_resume(make_trainer, run_and_save, tmp_path, name, optimization):
    """Whatever epoch the run stops after, it ends bit for bit as the unbroken one."""
    unbroken = project(optimization)
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    make_trainer(EPOCHS, CALLBACKS[name](), every).fit(unbroken, loader(), loader())
    for epoch in range(EPOCHS - 1):
        resumed = project(optimization)
        trainer = make_trainer(EPOCHS, CALLBACKS[name]())
        trainer.fit(resumed, loader(), loader(), ckpt_path=tmp_path / f"{epoch}.ckpt", weights_only=True)
        assert_compressed(name, resumed, trainer)
        torch.testing.assert_close(resumed.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


@every_callback
def test_best_checkpoint_is_tested_though_the_last_network_has_another_shape(make_trainer, tmp_path, name):
    """The best of all is the dense network (made so here), the best compressed one is smaller."""
    module = project()
    of_all = ModelCheckpoint(tmp_path / "all", monitor="shown", mode="max")
    module.validation_step = lambda batch, batch_idx: module.log_dict(
        {"shown": 1.0 / (1 + module.current_epoch), "accuracy/val": 0.1 * module.current_epoch}
    )
    trainer = make_trainer(EPOCHS, CALLBACKS[name](), of_all)
    trainer.fit(module, loader(), loader())
    small = lf.count_parameters(module.net)
    (found,) = trainer.test(module, loader(), ckpt_path="best", weights_only=True, verbose=False)
    assert lf.count_parameters(module.net) == lf.count_parameters(project().net)
    assert not REWRITES[name] or small < lf.count_parameters(module.net)
    dense = project()
    dense.load_state_dict(torch.load(of_all.best_model_path, weights_only=True)["state_dict"])
    (expected,) = make_trainer(1).test(dense, loader(), verbose=False)
    assert found == expected


@every_callback
@pytest.mark.slow
@pytest.mark.parametrize("way", ["wrapped", "in place", "whole module"])
def test_compile(make_trainer, name, way):
    """Compiled code is made anew for the new shapes: the network ends as without it."""
    plain, module = project(), project()
    make_trainer(EPOCHS, CALLBACKS[name]()).fit(plain, loader(), loader())
    if way == "wrapped":
        module.net = torch.compile(module.net, backend="aot_eager")
    elif way == "in place":
        module.net.compile(backend="aot_eager")
    model = torch.compile(module, backend="aot_eager") if way == "whole module" else module
    trainer = make_trainer(EPOCHS, CALLBACKS[name]())
    trainer.fit(model, loader(), loader())
    assert_compressed(name, module, trainer)
    found = {key.replace("_orig_mod.", ""): value for key, value in module.state_dict().items()}
    torch.testing.assert_close(found, dict(plain.state_dict()), rtol=1e-4, atol=1e-5)


SCRIPT = """
import os, sys
import lightning, torch
from torch.utils.data import DataLoader, DistributedSampler
from tests.callbacks.projects import CALLBACKS, EPOCHS, project, tensors

torch.set_num_threads(1)
share = DistributedSampler(tensors(), num_replicas=2, rank=int(os.environ["LOCAL_RANK"]), shuffle=False)
loader = DataLoader(tensors(), batch_size=16, sampler=share)  # Lightning's own would shuffle
for name in CALLBACKS:
    module = project()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=2, strategy="ddp", precision="64-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[CALLBACKS[name]()]
    )
    trainer.fit(module, loader, loader)
    assert trainer.world_size == 2
    torch.save(module.state_dict(), f"{sys.argv[1]}/{name}-{trainer.global_rank}.pt")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Folder with the network of every callback from each of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).resolve().parents[2])
    common = {"PYTHONPATH": root, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder)],
            env={**os.environ, **common, "LOCAL_RANK": str(rank), "NODE_RANK": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:]
    return folder


@every_callback
@pytest.mark.slow
def test_two_processes_end_as_one(make_trainer, two_processes, name):
    """Ranks agree to the bit; one process on the same global batches gets the same network."""
    first, second = (torch.load(two_processes / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = project()
    trainer = make_trainer(EPOCHS, CALLBACKS[name](), precision="64-true")
    trainer.fit(alone, loader(32), loader(32))
    assert_compressed(name, alone, trainer)
    torch.testing.assert_close(first, dict(alone.state_dict()), rtol=1e-6, atol=1e-9)
