"""Remarks of Lightning that a reader of the commands' output can do nothing about."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Warnings about choices this package made, or about Lightning's own code: a reader can do nothing about them.
UNHELPFUL_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # data in memory is fastest without workers
    "The number of training batches .* is smaller than the logging interval",  # metrics are logged per epoch
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # inside Lightning
)

_LIGHTNING = logging.getLogger("lightning.pytorch.utilities.rank_zero")


def silence() -> None:
    """Keep these remarks from the terminal, for the rest of the process."""
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message)
    _LIGHTNING.addFilter(_is_no_advertisement)


@contextmanager
def without_hardware() -> Iterator[None]:
    """Keep Lightning from naming the hardware and the limits again for every trainer."""
    level = _LIGHTNING.level
    _LIGHTNING.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _LIGHTNING.setLevel(level)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
