import math

import pytest
import torch

from lightning_fold.schedules import PhasedCosine


def rates(schedule_epochs, epochs, ends, lr=0.5):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = PhasedCosine(optimizer, epochs, ends)
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
    assert rates(9, [8], [0.1]) == pytest.approx(expected)


def test_phases_begin_anew_and_the_last_end_holds():
    found = rates(9, [4, 2], [0.0, 0.2], lr=1.0)
    first = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert found == pytest.approx([*first, 1.0, 0.6, 0.2, 0.2, 0.2])


def test_an_end_of_one_is_constant():
    assert rates(4, [2, 2], [1.0, 1.0]) == [0.5] * 4


def test_state_is_restored():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return optimizer, PhasedCosine(optimizer, [3, 3], [0.1, 0.0])

    optimizer, schedule = make()
    for _ in range(2):
        optimizer.step()
        schedule.step()
    _, again = make()
    again.load_state_dict(schedule.state_dict())
    assert again.get_last_lr() == schedule.get_last_lr() == rates(3, [3, 3], [0.1, 0.0])[2:]


@pytest.mark.parametrize(("epochs", "ends"), [([], []), ([1], [0.1, 0.2]), ([0], [0.1]), ([1], [1.1]), ([1], [-0.1])])
def test_wrong_lists_are_refused(epochs, ends):
    with pytest.raises(ValueError, match=r"PhasedCosine\(epochs=.*expected two lists of one length"):
        rates(1, epochs, ends)
