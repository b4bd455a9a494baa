import math

import pytest
import torch

from lightning_fold.schedules import PhasedCosine


def rates(schedule_epochs, epochs, starts, ends, lr=0.5):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = PhasedCosine(optimizer, epochs, starts, ends)
    found = []
    for _ in range(schedule_epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_one_phase_is_torchs_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=0.05)
    expected = []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(9, [8], [1.0], [0.1]) == pytest.approx(expected)


def test_phases_begin_anew_and_the_last_end_holds():
    found = rates(9, [4, 2], [1.0, 0.4], [0.0, 0.2], lr=1.0)
    first = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert found == pytest.approx([*first, 0.4, 0.3, 0.2, 0.2, 0.2])


def test_equal_start_and_end_are_constant():
    assert rates(4, [2, 2], [1.0, 0.5], [1.0, 0.5]) == pytest.approx([0.5, 0.5, 0.25, 0.25])


def test_state_is_restored():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return optimizer, PhasedCosine(optimizer, [3, 3], [1.0, 1.0], [0.1, 0.0])

    optimizer, schedule = make()
    for _ in range(2):
        optimizer.step()
        schedule.step()
    _, again = make()
    again.load_state_dict(schedule.state_dict())
    assert again.get_last_lr() == schedule.get_last_lr() == rates(3, [3, 3], [1.0, 1.0], [0.1, 0.0])[2:]


@pytest.mark.parametrize(
    ("epochs", "starts", "ends"),
    [
        ([], [], []),
        ([1], [1.0], [0.1, 0.2]),
        ([1], [1.0, 1.0], [0.1]),
        ([0], [1.0], [0.1]),
        ([1], [1.0], [1.1]),
        ([1], [-0.1], [0.1]),
    ],
)
def test_wrong_lists_are_refused(epochs, starts, ends):
    with pytest.raises(ValueError, match=r"PhasedCosine\(epochs=.*expected three lists of the same length"):
        rates(1, epochs, starts, ends)
