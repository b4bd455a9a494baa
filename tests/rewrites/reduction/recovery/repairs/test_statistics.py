"""Statistics: repair on data, after the cut."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.errors import ArgumentError
from tests.zoo import ZOO, build, run


def _batches(name: str, count: int = 3, size: int = 24) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [ZOO[name].inputs(size)[0] + 0.1 * i for i in range(count)]


def test_repair_on_data_is_repair_where_it_helps() -> None:
    model = build("conv_norm")
    batches = _batches("conv_norm", 3)
    lf.repair(model, batches)
    by_hand = deepcopy(model)
    report = lf.prune(model, batches[0][:2], keep=0.6, of="channels", repair="data", batches=batches)
    lf.prune(by_hand, batches[0][:2], keep=0.6, of="channels")
    lf.repair(by_hand, [torch.cat(batches[:-1])])
    assert report.notes == ()
    torch.testing.assert_close(run(model, (batches[2],)), run(by_hand, (batches[2],)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_batch_norm_is_given_the_statistics_of_what_it_now_reads(method) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    batches = [3 * torch.randn(256, 4, dtype=torch.float64) + 2 for _ in range(2)]
    lf.repair(model, batches[:1])
    method(model, batches[0], keep=0.5, of="channels", repair="data", batches=batches)
    read = model[0](batches[0]).detach()  # the last batch is held out
    assert model[1].num_features == 4
    torch.testing.assert_close(model[1].running_mean, read.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model[1].running_var, read.var(0), rtol=1e-9, atol=1e-9)


def test_without_batches_it_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"repair='data'.*batches"):
        lf.prune(build("conv_norm"), ZOO["conv_norm"].inputs(), repair="data")
