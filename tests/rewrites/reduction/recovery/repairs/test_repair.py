"""Repairs: three steps, in order, each of which may be left out."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.rewrites.reduction.recovery.repairs.repair import NoRepair, Repair


def _network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(8, 4).double()


class _Recorder(Repair):
    def __init__(self) -> None:
        self.steps = []

    def before_cut(self, surgery, cut):
        self.steps.append(("before", surgery.model[0].out_features))
        return int((~cut.removal.removed).sum())

    def after_cut(self, surgery, recovery, found):
        self.steps.append(("after", surgery.model[0].out_features))
        assert found == int((~recovery.cut.removal.removed).sum())

    def finish(self, surgery, recovery):
        self.steps.append(("finish", surgery.model[0].out_features))
        assert recovery.dense is not None and recovery.dense.network[0].out_features == 6


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_steps_come_in_order_around_the_cut(method) -> None:
    (model, x), recorder = _network(), _Recorder()
    method(model, x, keep=0.5, of="channels", repair=recorder)
    assert recorder.steps == [("before", 6), ("after", 3), ("finish", 3)]


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_a_repair_without_steps_leaves_what_no_repair_leaves(method) -> None:
    model, x = _network()
    plain, other = deepcopy(model), deepcopy(model)
    for network, repair in ((model, Repair()), (plain, NoRepair()), (other, "none")):
        assert method(network, x, keep=0.5, of="channels", repair=repair).notes == ()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_no_repair_does_not_ask_for_a_calibration() -> None:
    asked = []

    def source(*args):
        asked.append(args)
        raise KeyError("asked")

    model, x = _network()
    lf.prune(model, x, keep=0.5, of="channels", repair="none", calibration=source)
    assert asked == []
    with pytest.raises(KeyError, match="asked"):
        lf.prune(model, x, keep=0.5, of="channels", repair=Repair(), calibration=source)


def test_a_step_that_fails_leaves_the_network_as_it_was() -> None:
    class Failing(Repair):
        def finish(self, surgery, recovery):
            surgery.scale("0.weight", 0, torch.zeros(3))
            raise KeyError("a bug")

    model, x = _network()
    before = deepcopy(model.state_dict())
    with pytest.raises(KeyError):
        lf.prune(model, x, keep=0.5, of="channels", repair=Failing())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
