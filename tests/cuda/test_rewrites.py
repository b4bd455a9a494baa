"""Every rewrite on the device: results as on the CPU, nothing left elsewhere, bounded memory."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from benchmarks.gpu_parts.sizes import size
from lightning_fold.models import CifarResNet
from tests import zoo
from tests.cuda.devices import on_devices

NETWORKS = {"residual": "both", "separable": "columns", "attention_fused": "both", "conv_stream": "columns"}
SQUARES = {"compensate": "least-squares"}
CHANNELS = size(0.6, "channels")
REWRITES = {
    "minimize": lambda m, x, b, o: lf.minimize(m, x, optimizers=o),
    "release": lambda m, x, b, o: lf.release(m, seed=0, optimizers=o),
    "sparsify": lambda m, x, b, o: lf.sparsify(m, 0.5, optimizers=o),
    "prune": lambda m, x, b, o: lf.prune(m, x, **CHANNELS, optimizers=o),
    "prune, data": lambda m, x, b, o: lf.prune(m, x, **CHANNELS, **SQUARES, batches=b, optimizers=o),
    "fold": lambda m, x, b, o: lf.fold(m, x, **CHANNELS, optimizers=o),
    "fold, data": lambda m, x, b, o: lf.fold(m, x, **size(0.6), repair="data", batches=b, optimizers=o),
    "factorize": lambda m, x, b, o: lf.factorize(m, x, **size(0.6), optimizers=o),
    "factorize, data": lambda m, x, b, o: lf.factorize(m, x, **size(0.6, "flops"), batches=b, optimizers=o),
    "repair": lambda m, x, b, o: lf.repair(m, b),
}
every_rewrite = pytest.mark.parametrize("rewrite", list(REWRITES))

# Of an output, relative to the spread of the outputs: what a rewrite may lose more than in float64 on the CPU.
ROUNDING = {"float32": 1e-3, "tf32": 3e-2, "bfloat16": 3e-1, "float16": 5e-2}


def built(name, rewrite, dtype=torch.float64):
    """A network of the zoo, with zeros where the rewrite is about them, and two batches of inputs."""
    model = zoo.build(name, NETWORKS[name] if rewrite in ("minimize", "release") else None, dtype=dtype)
    return model, [zoo.ZOO[name].inputs(16, seed=seed)[0].to(dtype) for seed in (1, 2)]


def rewritten(model, batches, rewrite, device, optimizers=()):
    """A copy of the network on the device after the rewrite, and its inputs there."""
    model, batches = deepcopy(model).to(device), [batch.to(device) for batch in batches]
    REWRITES[rewrite](model, batches[0][:2], batches, optimizers)
    return model, batches[0]


def outputs(model, batch):
    return zoo.run(model.eval(), (batch,)).double().cpu()


@every_rewrite
@on_devices("name", ["residual"], NETWORKS)
def test_result_is_that_of_the_cpu(device, name, rewrite, record_property):
    """In float64, where no decision hangs on a rounding error."""
    model, batches = built(name, rewrite)
    expected, batch = rewritten(model, batches, rewrite, torch.device("cpu"))
    found, moved = rewritten(model, batches, rewrite, device)
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (found, expected)]
    assert shapes[0] == shapes[1]
    error = zoo.error_of(outputs(found, moved), outputs(expected, batch))
    record_property("error", error)
    assert error < 1e-6
    assert {tensor.device.type for tensor in tensors(found)} == {device.type}


@every_rewrite
@on_devices("precision", ["float32", "bfloat16", "float16"], ROUNDING)
def test_precision(device, precision, rewrite, record_property):
    """A rewrite of a rounded network loses no more than on the CPU in float64, but for rounding."""
    dtype = getattr(torch, precision, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    model, batches = built("residual", rewrite, dtype)
    exact, wide = deepcopy(model).double(), [batch.double() for batch in batches]
    dense = outputs(exact, wide[0])
    expected = zoo.error_of(outputs(*rewritten(exact, wide, rewrite, torch.device("cpu"))), dense)
    found = zoo.error_of(outputs(*rewritten(model, batches, rewrite, device)), dense)
    record_property("error", found)
    record_property("error in float64 on the CPU", expected)
    assert found < 1.25 * expected + ROUNDING[precision]


def tensors(model):
    """Every tensor that a module of the network holds, registered or not."""
    for module in model.modules():
        held = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        for value in held:
            yield from [value] if isinstance(value, torch.Tensor) else []


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("rewrite", ["minimize", "prune", "fold", "factorize"])
def test_optimizer_state_remains_where_it_is(device, rewrite, optimizer):
    model, batches = built("residual", rewrite)
    model, batches = model.to(device), [batch.to(device) for batch in batches]
    made = OPTIMIZERS[optimizer](model.parameters())
    step(model, made, batches[0])
    places = {key: value.device for state in made.state.values() for key, value in state.items()}
    REWRITES[rewrite](model, batches[0][:2], batches, [made])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, made, batches[0])
    assert sorted(map(id, made.param_groups[0]["params"])) == sorted(map(id, model.parameters()))
    assert {key: value.device for state in made.state.values() for key, value in state.items()} == places
    assert {tensor.device.type for tensor in tensors(model)} == {device.type}
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def step(model, optimizer, batch):
    optimizer.zero_grad()
    model.train()
    zoo.flat(model(batch)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("memory", ["contiguous", "channels last"])
def test_memory_format(device, memory):
    """Factors and narrower layers compute the same from channels-last images."""
    model, batches = built("residual", "prune")
    form = torch.channels_last if memory == "channels last" else torch.contiguous_format
    model, batch = model.to(memory_format=form), batches[0].to(memory_format=form)
    for rewrite in ("prune", "factorize"):
        found, moved = rewritten(model, [batch, batches[1]], rewrite, device)
        expected, still = rewritten(model, [batch, batches[1]], rewrite, torch.device("cpu"))
        assert zoo.error_of(outputs(found, moved), outputs(expected, still)) < 1e-6


@pytest.mark.cuda
@every_rewrite
def test_peak_memory(rewrite, record_property):
    """ResNet-18: at most this many times the network's own bytes beside it."""
    device = torch.device("cuda")
    model = CifarResNet(18, widths=[64, 128, 256, 512], shortcut="B").eval().to(device)
    batches = [torch.randn(32, 3, 32, 32, device=device) for _ in range(2)]
    own = sum(tensor.nbytes for tensor in model.state_dict().values())
    if rewrite in ("minimize", "release"):
        nn.init.zeros_(model.layer4[0].conv1.weight[:100])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    REWRITES[rewrite](model, batches[0][:2], batches, ())
    times = (torch.cuda.max_memory_allocated() - before) / own
    record_property("peak beside the network, in networks", times)
    assert times < 20
