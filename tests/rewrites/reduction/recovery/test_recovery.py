"""Recovery: steps are taken over where they help, and undone where they harm."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.rewrites.calibration import Calibration
from lightning_fold.rewrites.channels.widths import find_prunable_groups
from lightning_fold.rewrites.reduction.cut import plan_cut
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery, improved
from lightning_fold.rewrites.reduction.selector import ChannelSelector
from lightning_fold.surgery.transaction import Surgery


def _network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(40, 4).double()


def _cut(model: nn.Module, x: Tensor, surgery: Surgery) -> Recovery:
    """Channels 0 and 1 become one, channel 5 goes."""
    structure, widths = find_prunable_groups("fold", model, x)
    dense = Calibration(deepcopy(model).eval(), [x], x, real=True)
    cut = plan_cut(surgery, structure, ChannelSelector(), widths, [torch.tensor([0, 0, 1, 2, 3, -1])])
    cut.apply(surgery)
    return Recovery(cut, dense)


def _towards(dense: nn.Module, share: float):
    def step(model: nn.Module) -> None:
        with torch.no_grad():
            for new, old in zip(model.parameters(), dense.parameters(), strict=True):
                new += share * (old - new)

    return step


@pytest.mark.parametrize(("share", "helps"), [(0.5, True), (1.0, True), (-0.5, False), (3.0, False)])
def test_a_step_is_taken_on_a_copy_where_it_helps(share: float, helps: bool) -> None:
    dense, x = _network()
    model = deepcopy(dense)
    with torch.no_grad():
        model[2].bias += 1
    before = deepcopy(model.state_dict())
    found, notes = improved("a step", model, Calibration(dense, [x], x, real=True), _towards(dense, share))
    assert (found is not model) == helps and len(notes) == (not helps)
    assert all("a step" in note for note in notes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(found[2].bias, dense[2].bias + (1 - share if helps else 1))


@pytest.mark.parametrize("helps", [True, False])
def test_values_are_taken_over_and_notes_kept(helps: bool) -> None:
    model, x = _network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Surgery(model, [optimizer]) as surgery:
        recovery = _cut(model, x, surgery)
        before = deepcopy(model.state_dict())
        fitted = torch.linalg.lstsq(model[:2](x), recovery.dense.network(x) - model[2].bias).solution.T.detach()

        def step(copy: nn.Module) -> None:
            copy[2].weight.data = fitted if helps else -fitted

        recovery.if_better("fit", surgery, step)
    assert torch.equal(model[2].weight, fitted if helps else before["2.weight"])
    assert torch.equal(model[0].weight, before["0.weight"]) and len(recovery.notes) == (not helps)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_the_calibrated_copy_is_the_network_that_was_cut() -> None:
    model, x = _network()
    with Surgery(model) as surgery:
        recovery = _cut(model, x, surgery)
        reference, small = recovery.calibrated(surgery)
    torch.testing.assert_close(small.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(reference(x), recovery.dense.network(x), rtol=1e-12, atol=1e-12)
    error = (model(x) - reference(x)).square().sum() / (reference(x) - reference(x).mean(0)).square().sum()
    assert recovery.error(small, [reference(x).detach()]) == pytest.approx(float(error))


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_mean_outputs_are_the_dense_ones_once_biases_were_solved_for(method) -> None:
    model, x = _network()
    dense = deepcopy(model)
    method(model, x, keep=0.5, of="channels", compensate="bias", batches=[x], repair="none")
    torch.testing.assert_close(model(x).mean(0), dense(x).mean(0), rtol=1e-9, atol=1e-9)


def test_norm_rows_are_means_over_clusters_for_norms_that_are_called_once() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
            self.once, self.twice = nn.LayerNorm(6), nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.twice(self.twice(self.once(self.embed(x)))))

    model, x = Norms().double(), torch.randn(5, 4, dtype=torch.float64)
    structure, widths = find_prunable_groups("fold", model, x)
    assignments = [torch.tensor([0, 0, 1, 2, 3, 4])]
    with Surgery(model) as surgery:
        cut = plan_cut(surgery, structure, ChannelSelector(), widths, assignments)
        rows = Recovery(cut, None).norm_rows(model)
    expected = torch.eye(6, dtype=torch.float64)[1:]
    expected[0, :2] = 0.5
    assert list(rows) == ["once"] and torch.equal(rows["once"], expected)
