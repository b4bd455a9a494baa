"""Remarks of Lightning that are kept from the terminal, and those that are not."""

import logging
import warnings

import pytest

from lightning_fold import remarks

LOGGER = logging.getLogger("lightning.pytorch.utilities.rank_zero")


@pytest.fixture
def quiet():
    """``silence`` for one test."""
    filters, level = list(LOGGER.filters), LOGGER.level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        remarks.silence()
        yield
    LOGGER.filters[:], LOGGER.level = filters, level


def test_unhelpful_warnings_are_ignored_and_others_are_not(quiet) -> None:
    warnings.warn("The 'val_dataloader' does not have many workers which may be a bottleneck", stacklevel=1)
    warnings.warn("The number of training batches (3) is smaller than the logging interval", stacklevel=1)
    with pytest.raises(UserWarning, match="learning rate"):
        warnings.warn("learning rate is 0", stacklevel=1)


def test_advertisement_is_filtered_and_other_lines_are_not(quiet) -> None:
    lines = ["Tip: For seamless cloud uploads", "`Trainer.fit` stopped: `max_epochs=1` reached."]
    records = [logging.LogRecord("x", logging.INFO, "", 0, line, (), None) for line in lines]
    assert [bool(LOGGER.filter(record)) for record in records] == [False, True]


def test_hardware_is_named_again_after_the_block_even_after_an_error() -> None:
    before = LOGGER.level
    with pytest.raises(ZeroDivisionError), remarks.without_hardware():
        assert not LOGGER.isEnabledFor(logging.INFO) and LOGGER.isEnabledFor(logging.WARNING)
        _ = 1 // 0
    assert LOGGER.level == before
