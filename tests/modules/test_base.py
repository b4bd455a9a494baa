"""What the LightningModules share, on one that measures nothing."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.modules.base import NetworkModule, network_source, own_arguments


class Plain(NetworkModule):
    """A module whose argument ``size`` is the number of classes."""

    size = "size"

    def __init__(
        self,
        network="lightning_fold.models.MLP",
        network_args=None,
        size=3,
        label_smoothing=0.0,
        distillation=0.0,
        temperature=1.0,
        optimizer=None,
        lr_scheduler=None,
        regularizers=None,
    ):
        super().__init__(own_arguments(locals()))


LAYER = nn.Linear(4, 3).double()
X = torch.randn(2, 5, 4, dtype=torch.float64)
TARGETS = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_loss_is_cross_entropy_over_all_targets(smoothing: float) -> None:
    module = Plain(LAYER, label_smoothing=smoothing).train()
    loss, logits = module.loss(X, TARGETS)
    log = logits.log_softmax(-1)
    true = -log.gather(-1, TARGETS[..., None]).mean()
    expected = (1 - smoothing) * true - smoothing * log.mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert torch.equal(logits, LAYER(X))


def test_probabilities_are_those_of_the_logits() -> None:
    found = Plain(LAYER).predict_step((X, TARGETS), 0)
    torch.testing.assert_close(found, LAYER(X).exp() / LAYER(X).exp().sum(-1, keepdim=True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("targets", [torch.zeros(2, dtype=torch.long), torch.zeros(2, 5, 3, dtype=torch.long)])
def test_targets_of_another_shape_are_refused(targets: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match="size=3"):
        Plain(LAYER).loss(X, targets)


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 1},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"distillation": 1.5},
        {"temperature": 0.0},
    ],
)
def test_value_out_of_range_is_refused_under_its_own_name(arguments: dict) -> None:
    with pytest.raises(ArgumentError, match=f"Plain.*{next(iter(arguments))}="):
        Plain(LAYER, **arguments)


def test_arguments_for_a_module_and_what_are_no_penalties_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="network_args"):
        Plain(LAYER, {"a": 1})
    with pytest.raises(ArgumentTypeError, match="regularizers"):
        Plain(LAYER, regularizers=[1])


def test_schedule_is_stepped_by_epoch_and_watches_what_it_names() -> None:
    alone = Plain(LAYER).configure_optimizers()
    assert type(alone) is torch.optim.AdamW and [id(p) for p in alone.param_groups[0]["params"]] == [
        id(p) for p in LAYER.parameters()
    ]
    found = Plain(LAYER, lr_scheduler=ReduceLROnPlateau).configure_optimizers()["lr_scheduler"]
    assert (found["interval"], found["monitor"]) == ("epoch", "loss/val")


def test_network_is_built_by_its_name_and_a_module_has_none() -> None:
    arguments = {"in_features": 4, "hidden": [5], "out_features": 3}
    named = Plain(network_args=arguments)
    assert network_source(named) == ("lightning_fold.models.MLP", arguments)
    assert named(torch.randn(2, 4)).shape == (2, 3)
    assert network_source(Plain(LAYER)) == (None, {}) and Plain(LAYER).teacher() is None


def test_epoch_begins_with_random_numbers_of_its_own(monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    module, drawn = Plain(LAYER), {}
    for epoch in (0, 1, 0):
        monkeypatch.setattr(type(module), "current_epoch", property(lambda self, epoch=epoch: epoch))
        module.on_train_batch_start(None, 0)
        first = torch.rand(3).tolist()
        assert drawn.setdefault(epoch, first) == first
        module.on_train_batch_start(None, 1)
        assert torch.rand(3).tolist() != first
    assert drawn[0] != drawn[1]
