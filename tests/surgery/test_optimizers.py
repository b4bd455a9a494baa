"""After a rewrite optimizers and schedules go on as if nothing had happened."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

import lightning_fold as lf
from lightning_fold.layers import Constant

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": partial(optim.Adam, lr=0.01),
    "amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True),
    "adamw": partial(optim.AdamW, lr=0.01, weight_decay=0.1),
    "fused": partial(optim.AdamW, lr=0.01, fused=True),
    "nadam": partial(optim.NAdam, lr=0.01),
    "radam": partial(optim.RAdam, lr=0.01),
    "adamax": partial(optim.Adamax, lr=0.01),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad": partial(optim.Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "adadelta": partial(optim.Adadelta, lr=1.0),
}
DEAD, KEPT = [2, 5], [0, 1, 3, 4, 6, 7]
X = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(make, schedule=None):
    """A network two of whose hidden units are zero throughout, after three steps in two parameter groups."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight[DEAD], model[0].bias[DEAD] = 0.0, 0.0
    groups = [{"params": [model[0].weight, model[2].weight]}, {"params": [model[0].bias, model[2].bias], "lr": 0.02}]
    optimizer = make(groups)
    scheduler = schedule(optimizer) if schedule else None
    steps(model, optimizer, scheduler)
    return model, optimizer, scheduler


def loss_of(model):
    return (model(X) - X[:, :3].sin()).square().mean()


def steps(model, optimizer, scheduler=None, count=3):
    rates = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        loss = loss.detach()
        optimizer.step()
        if scheduler is not None:
            scheduler.step(*([float(loss)] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


def survivors(name, tensor):
    """The entries of a tensor of the large network that are in the small one."""
    if name.startswith("0."):
        return tensor[KEPT]
    return tensor[:, KEPT] if name == "2.weight" else tensor


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_survivors_keep_their_state_to_the_bit(name):
    model, optimizer, _ = trained(OPTIMIZERS[name])
    before = {key: deepcopy(optimizer.state[p]) for key, p in model.named_parameters()}
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    loss = loss_of(model)
    report = lf.minimize(model, X, optimizers=[optimizer])
    assert report.parameters_after == 6 * 6 + 6 + 6 * 3 + 3
    torch.testing.assert_close(loss_of(model), loss, rtol=1e-14, atol=0)
    assert len(optimizer.state) == 4
    for key, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        assert state.keys() == before[key].keys() and len(state) > 0
        for entry, value in state.items():
            old = before[key][entry]
            old = survivors(key, old) if torch.is_tensor(old) and old.dim() else old
            assert torch.equal(value, old) if torch.is_tensor(value) else value == old
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == settings


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_training_goes_on_as_without_the_rewrite(name):
    """The units that went had no part in it, so that the others train as they would have beside them."""
    large, large_optimizer, _ = trained(OPTIMIZERS[name])
    small, small_optimizer, _ = trained(OPTIMIZERS[name])
    lf.minimize(small, X, optimizers=[small_optimizer])
    steps(large, large_optimizer, count=5)
    steps(small, small_optimizer, count=5)
    for key, parameter in large.named_parameters():
        found = dict(small.named_parameters())[key]
        torch.testing.assert_close(found, survivors(key, parameter), rtol=1e-10, atol=1e-12)


SCHEDULES = {
    "step": partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=6),
    "one cycle": partial(lr_scheduler.OneCycleLR, max_lr=[0.1, 0.05], total_steps=12),  # changes momenta as well
    "plateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5),
    "per group": partial(lr_scheduler.LambdaLR, lr_lambda=[lambda step: 0.9**step, lambda step: 1 / (1 + step)]),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[4],
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedules_go_on(name):
    rates = []
    for rewrite in (False, True):
        model, optimizer, scheduler = trained(OPTIMIZERS["adamw"], SCHEDULES[name])
        if rewrite:
            lf.minimize(model, X, optimizers=[optimizer])
        rates.append(steps(model, optimizer, scheduler, 6))
        held = [id(p) for group in scheduler.optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(map(id, model.parameters()))
    assert rates[0] == rates[1] and len({tuple(rate) for rate in rates[0]}) > 1


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda model, optimizers: lf.minimize(model, X, optimizers=optimizers),
        lambda model, optimizers: lf.prune(model, X, keep=0.5, of="channels", optimizers=optimizers),
        lambda model, optimizers: lf.fold(model, X, keep=0.5, of="channels", optimizers=optimizers),
        lambda model, optimizers: lf.factorize(model, X, keep=0.7, optimizers=optimizers),
    ],
)
def test_lbfgs_is_refused_and_goes_on(rewrite):
    model, _, _ = trained(OPTIMIZERS["sgd"])
    optimizer = optim.LBFGS(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"LBFGS keeps the history of all parameters in one vector.*AdamW"):
        rewrite(model, [optimizer])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert float(optimizer.step(closure)) > float(loss_of(model))


class Wide(nn.Module):
    """Norms, biases, a layer without bias whose input holds a constant, and a branch that gives nothing."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.LayerNorm(8)
        self.branch, self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.two(self.one(x).relu()))
        return self.head(x + self.branch(x))


def wide():
    torch.manual_seed(0)
    model = Wide().double()
    with torch.no_grad():
        model.one.weight[0], model.one.bias[0] = 0.0, 0.7
        model.branch[2].weight.zero_()
    return model


def by_dimensions(model):
    parameters = list(model.parameters())
    return [[p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() < 2]]


def by_layers(model):
    last = list(model.head.parameters())
    return [last, [p for p in model.parameters() if all(p is not other for other in last)]]


def ids(groups):
    return [list(map(id, group)) for group in groups]


SPLITS = {"one": lambda model: [list(model.parameters())], "dimensions": by_dimensions, "layers": by_layers}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_groups_are_those_the_rewritten_network_would_get(split, several):
    """New biases, constants and factors: a resumed run builds the groups from the rewritten network."""
    model, split = wide(), SPLITS[split]
    groups = [{"params": params} for params in split(model)]
    optimizers = [optim.AdamW([group]) for group in groups] if several else [optim.AdamW(groups)]

    def held():
        return ids(group["params"] for optimizer in optimizers for group in optimizer.param_groups)

    lf.minimize(model, X, optimizers=optimizers)
    assert model.two.bias is not None and isinstance(model.branch, Constant)
    assert held() == ids(split(model))
    lf.factorize(model, X, keep=0.7, optimizers=optimizers)
    assert any(isinstance(module, nn.Sequential) for module in model.children())
    assert held() == ids(split(model))
    steps(model, optimizers[0])


def test_new_bias_is_not_trained_by_muon():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.7
    optimizers = [optim.Muon([model[0].weight, model[2].weight], lr=0.01), optim.AdamW([model[0].bias])]
    for optimizer in optimizers:
        steps(model, optimizer, count=1)
    with torch.no_grad():
        model[0].weight[0] = 0.0
    lf.minimize(model, X, optimizers=optimizers)
    assert ids(optimizer.param_groups[0]["params"] for optimizer in optimizers) == ids(by_dimensions(model))
    before = deepcopy(model.state_dict())
    for optimizer in optimizers:
        steps(model, optimizer, count=1)
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
