"""Lightning's messages that users of the commands cannot act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Warnings about choices of this package or about Lightning's own code; users cannot act on them.
UNHELPFUL_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # data in memory is fastest without workers
    "The number of training batches .* is smaller than the logging interval",  # metrics are logged per epoch
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # inside Lightning
)

_LIGHTNING = logging.getLogger("lightning.pytorch.utilities.rank_zero")


def silence() -> None:
    """Hide these messages for the rest of the process."""
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message)
    _LIGHTNING.addFilter(_is_no_advertisement)


@contextmanager
def without_hardware() -> Iterator[None]:
    """Keep Lightning from listing the hardware and the trainer's limits again for every trainer."""
    level = _LIGHTNING.level
    _LIGHTNING.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _LIGHTNING.setLevel(level)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
