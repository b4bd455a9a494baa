"""How to shrink a width: the part in which prune and fold differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.rewrites.calibration import LazyCalibration
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.structure.groups import Structure


@dataclass
class SelectionContext:
    """The information that a channel selector can use.

    Attributes:
        model: the network.
        structure: the structure of the network.
        calibration: the dense network and inputs to run it on, made on first use.
        loss: a function of network and batch, if the caller passed one.
    """

    model: nn.Module
    structure: Structure
    calibration: LazyCalibration
    loss: Callable[[nn.Module, Any], Tensor] | None = None

    @property
    def batches(self) -> list[Any] | None:
        """The batches as the caller passed them."""
        return self.calibration.batches


class ChannelSelector:
    """Chooses the channels that a width keeps or merges."""

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        """(channels,) the cluster of each channel, or -1 to remove it, so that each block keeps ``kept`` channels."""
        raise NotImplementedError

    def approximate(self, width: PrunableGroup, kept: int) -> Tensor:
        """A faster, possibly worse :meth:`assign`, used to measure the error of a size."""
        return self.assign(width, kept)

    def scales(self, width: PrunableGroup) -> Tensor:
        """(channels,) the divisor of each channel before it is merged with others."""
        return torch.ones(width.group.size, dtype=torch.float64)

    def refused(self, width: PrunableGroup) -> str | None:
        """Why this width cannot shrink, or ``None``."""
        return None

    def notes(self, widths: list[PrunableGroup]) -> list[str]:
        """Notes for the report on how the channels of ``widths`` were chosen."""
        return []
