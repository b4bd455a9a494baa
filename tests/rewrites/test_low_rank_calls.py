"""factorize: layers under several names, layers that other code reads or calls by name, complex weights."""

import pytest
import torch
from torch import nn

import lightning_fold as lf


def _randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


class SharedModule(nn.Module):
    """One linear layer under three names, of which ``called`` are called."""

    def __init__(self, called):
        super().__init__()
        self.first, self.last, self.called = nn.Linear(8, 32), nn.Linear(32, 4), called
        self.middle = nn.ModuleList([nn.Linear(32, 32)] * 2)
        self.other = self.middle[0]

    def forward(self, x):
        x = self.first(x)
        for name in self.called:
            x = self.get_submodule(name)(x).relu()
        return self.last(x)


@pytest.mark.parametrize("called", [["middle.0", "middle.1", "other"], ["middle.1"], ["other"]], ids="+".join)
def test_module_under_several_names_is_factorized_once(called):
    torch.manual_seed(0)
    model, x = SharedModule(called).double(), torch.randn(4, 8, dtype=torch.float64)
    with torch.no_grad():
        model.other.weight.copy_(_randn(32, 3) @ _randn(3, 32) / 16)
    expected, optimizer = model(x), torch.optim.Adam(model.parameters())
    wanted = 3 * (32 + 32) + 32 + 8 * 32 + 32 + 32 * 4 + 4
    keep = wanted / lf.count_parameters(model)
    report = lf.factorize(model, x, keep_parameters=keep, optimizers=[optimizer])
    assert report.parameters_after == lf.count_parameters(model) == wanted and not report.notes
    assert model.middle[0] is model.middle[1] is model.other and isinstance(model.other, nn.Sequential)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    other = SharedModule(called).double()
    lf.rebuild(other, lf.describe(model))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), expected, rtol=1e-10, atol=1e-10)


def test_missed_budget_is_said():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), torch.randn(2, 6)
    report = lf.factorize(model, x, keep_parameters=0.95)
    share = f"{lf.count_parameters(model) / 84:.1%}"
    assert report.notes == (f"{share} of the parameters are left, the nearest to the 95.0% asked for",)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    flops = lf.count_flops(model, x)
    report = lf.factorize(model, x, keep_flops=0.9)
    assert report.notes[0].startswith(f"{lf.count_flops(model, x) / flops:.1%} of the FLOPs are left")
