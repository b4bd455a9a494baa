"""Checks of arguments: what passes, and what is refused with the call as it was written."""

import math

import numpy as np
import pytest

from lightning_fold.arguments import as_list, check_choice, check_count, check_share
from lightning_fold.errors import ArgumentError


@pytest.mark.parametrize("value", [[1, 2], (1, 2), {1: 0, 2: 0}, (i for i in (1, 2)), range(1, 3)])
def test_anything_with_elements_is_a_list(value) -> None:
    assert as_list("F", "a", value) == [1, 2]


@pytest.mark.parametrize("value", ["ab", 3, 0.5, True])
def test_one_value_is_no_list(value) -> None:
    with pytest.raises(ArgumentError, match=r"F\(a=") as error:
        as_list("F", "a", value)
    assert f"[{value!r}]" in str(error.value)


@pytest.mark.parametrize("value", [2, 3, np.int64(7), 10**20])
def test_counts_that_pass(value) -> None:
    assert check_count("F", "a", value, 2) is None


@pytest.mark.parametrize("value", [1, -1, 2.0, "3", math.nan, None])
def test_counts_that_are_refused(value) -> None:
    with pytest.raises(ArgumentError, match=r"F\(a="):
        check_count("F", "a", value, 2)


@pytest.mark.parametrize(
    ("value", "zero_to_below_one", "above_zero_to_one"),
    [
        (0, True, False),
        (1e-9, True, True),
        (0.5, True, True),
        (1, False, True),
        (-0.1, False, False),
        (1.1, False, False),
        (math.nan, False, False),
    ],
)
def test_shares_at_both_ends(value: float, zero_to_below_one: bool, above_zero_to_one: bool) -> None:
    for one, passes in ((False, zero_to_below_one), (True, above_zero_to_one)):
        if passes:
            check_share("F", "a", value, one=one)
        else:
            with pytest.raises(ArgumentError, match=r"F\(a="):
                check_share("F", "a", value, one=one)


def test_choice_names_all_that_there_are() -> None:
    check_choice("F", "a", "x", ("x", "y"))
    with pytest.raises(ArgumentError, match=r"F\(a='z'\).*'x', 'y'"):
        check_choice("F", "a", "z", ("x", "y"))
