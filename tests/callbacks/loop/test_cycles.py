"""The arithmetic of phases, against a schedule that is written out."""

import pytest

from lightning_fold.callbacks.loop.cycles import CycleSchedule

SCHEDULES = {
    (2, 2, 1, 2): ["dense"] * 2 + ["shrink", "masked", "masked"] * 2,
    (1, 3, 0, 1): ["dense"] + ["masked"] * 3,
    (3, 1, 2, 1): ["dense"] * 3 + ["shrink", "shrink", "masked"],
}


@pytest.mark.parametrize(("numbers", "written"), SCHEDULES.items())
def test_phases_and_cycles_as_written_out(numbers, written):
    schedule, expected = CycleSchedule(*numbers), [*written, *["final"] * 3]
    assert [schedule.phase(epoch) for epoch in range(len(expected))] == expected
    assert schedule.last_epoch == len(written)
    assert list(schedule.cycling_epochs) == [epoch for epoch, phase in enumerate(written) if phase != "dense"]


def test_cycles_are_counted_from_the_first_of_their_epochs():
    schedule = CycleSchedule(dense_epochs=2, cycles=2, shrink_epochs=1, masked_epochs=2)
    assert [schedule.cycle(epoch) for epoch in range(2, 8)] == [0, 0, 0, 1, 1, 1]
    assert [schedule.cycles_before(epoch) for epoch in range(11)] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_is_written_as_arguments_of_a_call():
    schedule = CycleSchedule(2, 3, 1, 4)
    assert eval(f"CycleSchedule({schedule})") == schedule


@pytest.mark.parametrize(("numbers", "message"), [((0, 1, 1, 1), "dense_epochs=0"), ((1, 1, 1, 0), "masked_epochs=0")])
def test_numbers_out_of_range_are_refused(numbers, message):
    with pytest.raises(ValueError, match=rf"Call\({message}\): expected at least 1"):
        CycleSchedule(*numbers).check("Call")
