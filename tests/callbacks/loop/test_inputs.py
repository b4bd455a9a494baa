"""What the network is called with is seen on the network, whatever the batch is and the step does with it."""

from contextlib import contextmanager

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import lightning_fold as lf
from lightning_fold.callbacks import (
    ChannelFolding,
    ChannelPruning,
    CompressionMonitor,
    LowRankFactorization,
    SqueezeRelease,
)
from lightning_fold.callbacks.loop.inputs import network_inputs
from lightning_fold.inputs import first_examples, join_inputs
from lightning_fold.storage.checkpoints import record_of

EXAMPLES = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, scale=1.0, other=None):
        hidden = self.one(x) * scale
        return self.out((hidden if other is None else hidden + self.two(other)).relu())


class Module(lightning.LightningModule):
    """Runs ``step(self, batch)`` as its training step."""

    def __init__(self, step, network=None):
        super().__init__()
        self.net, self.step = network or TwoInputs(), step
        self.before = nn.BatchNorm1d(6)

    def training_step(self, batch):
        return self.step(self, batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def keyed(module, batch):
    batch.pop("label")
    return module.net(other=batch["b"], x=batch["a"])


STEPS = {
    "a tensor": (EXAMPLES, lambda m, b: m.net(b), (EXAMPLES,)),
    "a tuple": ((EXAMPLES, 1), lambda m, b: m.net(b[0]), (EXAMPLES,)),
    "a dict": ({"a": EXAMPLES, "b": -EXAMPLES, "label": 1}, keyed, (EXAMPLES, 1.0, -EXAMPLES)),
    "nested": ([{"x": [EXAMPLES, EXAMPLES]}], lambda m, b: m.net(b[0]["x"][1], 2.0), (EXAMPLES, 2.0)),
    "changed": (EXAMPLES, lambda m, b: m.net(b.mul_(2) + 1), (EXAMPLES * 2 + 1,)),
    "first of two calls": (EXAMPLES, lambda m, b: m.net(-b) + m.net(b), (-EXAMPLES,)),
}


@pytest.mark.parametrize("kind", list(STEPS))
def test_inputs_are_those_of_the_call(kind):
    batch, step, expected = STEPS[kind]
    kept = EXAMPLES.clone()
    module = Module(step)
    record_of(module)
    found = network_inputs(module, batch, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(EXAMPLES, kept)
    assert not isinstance(batch, dict) or set(batch) == {"a", "b", "label"}
    with torch.no_grad():
        assert torch.equal(module.net(*found), module.net(*expected))


def test_looking_leaves_no_trace():
    """Random numbers, running statistics, gradients, hooks, modes and toggled parameters are as before."""

    def step(module, batch):
        module.log("seen", batch.mean())  # would fail here: the module has no trainer
        for parameter in module.net.parameters():
            parameter.requires_grad = False
        return module.net(module.before(nn.functional.dropout(batch)))

    module = Module(step)
    record_of(module)
    before, generator = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    network_inputs(module, EXAMPLES, 0)
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert all(part.training for part in module.modules()) and not module.net._forward_pre_hooks
    assert "log" not in vars(module)


@pytest.mark.parametrize("call", [lambda m, b: m.before(b), lambda m, b: m.net.forward(b), lambda m, b: m.net.one(b)])
@pytest.mark.parametrize("callback", [ChannelPruning, CompressionMonitor])
def test_network_that_is_not_called_is_refused_before_a_step(make_trainer, call, callback):
    module, trainer = Module(call), make_trainer(2, callback())
    with pytest.raises(ValueError, match=r"Module\.training_step does not call self\.net\(\.\.\.\).*module=NAME"):
        trainer.fit(module, DataLoader(EXAMPLES, batch_size=6))
    assert trainer.global_step == 0


def test_optimizer_does_not_step_while_looking(make_trainer):
    class ByHand(Module):
        automatic_optimization = False

        def training_step(self, batch):
            loss = self.before(batch).sum()
            self.optimizers().step()
            return loss

    module = ByHand(None)
    module.before.weight.grad = torch.ones(6)
    before = module.before.weight.detach().clone()
    with pytest.raises(ValueError, match="does not call"):
        make_trainer(1, ChannelPruning()).fit(module, DataLoader(EXAMPLES, batch_size=6))
    assert torch.equal(module.before.weight, before)


class Named(nn.Module):
    """As Hugging Face writes them: inputs by name alone, and others that it passes on."""

    def __init__(self):
        super().__init__()
        self.one, self.out, self.norm = nn.Linear(6, 8), nn.Linear(8, 3), nn.BatchNorm1d(8)

    def forward(self, *, pixels, scale=1.0, **others):
        return self.out(self.norm(self.one(pixels) * scale + others.get("shift", 0.0)).relu())


def named(module, batch):
    return module.net(shift=batch[:, :1], pixels=batch)


def test_inputs_without_a_position_are_given_by_name():
    module = Module(named, Named())
    record_of(module)
    found = network_inputs(module, EXAMPLES, 0)
    torch.testing.assert_close(found, {"pixels": EXAMPLES, "shift": EXAMPLES[:, :1]}, rtol=0, atol=0)
    torch.testing.assert_close(first_examples(found, 1), {"pixels": EXAMPLES[:1], "shift": EXAMPLES[:1, :1]})


def test_inputs_of_which_some_have_no_position_and_others_no_name_are_refused():
    class Both(Named):
        def forward(self, *pixels, scale):
            return super().forward(pixels=pixels[0], scale=scale)

    module = Module(lambda m, b: m.net(b, scale=2.0), Both())
    record_of(module)
    with pytest.raises(ValueError, match=r"Both\.forward was called with \['pixels'\], which can be given in"):
        network_inputs(module, EXAMPLES, 0)


CALLBACKS_OF_NAMED = {
    "squeeze-release": lambda: SqueezeRelease(1, 2, 0, 1, sparsity=[0.5], max_drift=0.1),
    "prune": lambda: ChannelPruning(keep=0.5, of="channels", at_epoch=1),
    "fold": lambda: ChannelFolding(keep=0.6, compensate="least-squares", repair="data-free", at_epoch=1),
    "factorize": lambda: LowRankFactorization(keep=0.8, at_epoch=1),
}


@pytest.mark.parametrize("name", list(CALLBACKS_OF_NAMED))
def test_inputs_by_name_through_a_training(make_trainer, name):
    torch.manual_seed(0)
    module, monitor = Module(named, Named()), CompressionMonitor()
    trainer = make_trainer(3, CALLBACKS_OF_NAMED[name](), monitor)
    trainer.fit(module, DataLoader(EXAMPLES, batch_size=6))
    assert lf.count_parameters(module.net) < lf.count_parameters(Named())
    assert [m["method"] for m in record_of(module).methods][:1] == [name]


@pytest.mark.parametrize("method", ["prune", "factorize"])
def test_rewrites_look_at_batches_of_inputs_by_name(make_trainer, method):
    """The callback at the end against the function on the network that training without it leaves."""
    batches, options = 2, {"compensate": "least-squares", "repair": "data"}
    callbacks = {
        "prune": ChannelPruning(keep=0.5, of="channels", batches=batches, **options),
        "factorize": LowRankFactorization(keep=0.8, batches=batches),
    }
    trained = []
    for callback in (callbacks[method], None):
        torch.manual_seed(0)
        trained.append(Module(named, Named()))
        make_trainer(2, *([callback] if callback else [])).fit(trained[-1], DataLoader(EXAMPLES, batch_size=6))
    parts = [{"pixels": part, "shift": part[:, :1]} for part in EXAMPLES.split(6)][:batches]
    net = trained[1].net
    if method == "prune":
        lf.prune(net, parts[0], keep=0.5, of="channels", batches=parts, **options)
    else:
        lf.factorize(net, parts[0], keep=0.8, batches=parts)
    assert lf.count_parameters(net) < lf.count_parameters(Named())
    torch.testing.assert_close(trained[0].net.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_dict_batches_through_a_training(make_trainer):
    data = [{"a": a, "b": a.flip(0), "label": 0} for a in EXAMPLES]
    module = Module(keyed)
    make_trainer(3, ChannelPruning(keep=0.5, of="channels", at_epoch=1)).fit(module, DataLoader(data, batch_size=4))
    assert module.net.one.out_features == module.net.two.out_features == module.net.out.in_features == 4
    assert lf.count_flops(module.net, first_examples((EXAMPLES, 1.0, EXAMPLES), 1)) == 2 * (2 * 6 * 4 + 4 * 3)


def test_inputs_of_several_processes_are_one_batch():
    """Batched leaves are put together, others are those of the first; ragged ones do not go together."""
    first, second = (EXAMPLES[:4], 3, torch.ones(2, 2)), (EXAMPLES[4:7], 3, torch.zeros(2, 2))
    torch.testing.assert_close(join_inputs([first, second]), (EXAMPLES[:7], 3, torch.ones(2, 2)))
    ragged = (EXAMPLES[:4, :5], EXAMPLES[:4]), (EXAMPLES[4:7], EXAMPLES[4:7])
    assert join_inputs([*ragged]) is None
    assert join_inputs([([EXAMPLES], 3), ([EXAMPLES, EXAMPLES], 3)]) is None


class StepsFirst(Module):
    """Steps its schedule, and counts, before it calls the network."""

    def __init__(self):
        super().__init__(None, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
        self.automatic_optimization, self.count, self.rates = False, 0, []

    def training_step(self, batch):
        self.count += 1
        self.lr_schedulers().step()
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.net(batch).square().mean())
        optimizer.step()
        self.rates = [*self.rates, optimizer.param_groups[0]["lr"]]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


@pytest.mark.parametrize("callbacks", [[ChannelPruning], [CompressionMonitor], [CompressionMonitor, ChannelPruning]])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_looking_takes_no_step_of_the_schedule(make_trainer, callbacks):
    module = StepsFirst()
    made = [kind(at_epoch=1) if kind is ChannelPruning else kind() for kind in callbacks]
    make_trainer(3, *made).fit(module, DataLoader(EXAMPLES, batch_size=6))
    assert module.rates == pytest.approx([0.1 * 0.9**step for step in range(1, 7)])
    assert module.count == 6


class Adversarial(lightning.LightningModule):
    """Two networks that train in turns, each with the other's parameters switched off."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch):
        for sign, optimizer in zip((1, -1), self.optimizers(), strict=True):
            with self.toggled(optimizer):
                loss = sign * self.critic(self.generator(batch)).mean() + (sign < 0) * self.critic(batch).mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    @contextmanager
    def toggled(self, optimizer):
        self.toggle_optimizer(optimizer)
        yield
        self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.Adam(network.parameters(), 0.01) for network in (self.generator, self.critic)]


@pytest.mark.parametrize("network", ["generator", "critic"])
def test_one_of_two_networks_that_train_in_turns(make_trainer, network):
    torch.manual_seed(0)
    module = Adversarial()
    trainer = make_trainer(3, ChannelPruning(keep=0.5, of="channels", at_epoch=1, module=network))
    trainer.fit(module, DataLoader(EXAMPLES, batch_size=6))
    widths = {"generator": module.generator[0].out_features, "critic": module.critic[0].out_features}
    assert widths == {"generator": 8, "critic": 8} | {network: 4}
    assert all(parameter.requires_grad for parameter in module.parameters())
    for optimizer, owner in zip(trainer.optimizers, (module.generator, module.critic), strict=True):
        assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, owner.parameters()))
    with pytest.raises(ValueError, match=r"does not call self\(\.\.\.\).*one of \['generator', 'critic'\]"):
        make_trainer(3, ChannelPruning(keep=0.5, of="channels", at_epoch=1)).fit(
            Adversarial(), DataLoader(EXAMPLES, batch_size=6)
        )


class Two(lightning.LightningModule):
    """Two networks, of which ``forward`` uses one or both."""

    def __init__(self, both):
        super().__init__()
        self.encoder, self.head, self.both = nn.Linear(6, 6), nn.Linear(6, 6), both

    def forward(self, x):
        return self.head(self.encoder(x)) if self.both else self.encoder(x)

    def training_step(self, batch):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_whole_module_is_the_network_where_forward_uses_all_of_it(make_trainer):
    module = Two(True)
    make_trainer(2, ChannelPruning(keep=0.5, of="channels", at_epoch=1)).fit(module, DataLoader(EXAMPLES, batch_size=6))
    assert (module.encoder.out_features, module.head.in_features) == (3, 3)
    with pytest.raises(ValueError, match=r"ChannelPruning\(module=''\): Two has several networks.*\['head'\].*NAME"):
        make_trainer(2, ChannelPruning(keep=0.5, of="channels", at_epoch=1)).fit(
            Two(False), DataLoader(EXAMPLES, batch_size=6)
        )
    assert record_of(module).network == ""
