"""How a width is made smaller: the part of prune and fold that differs."""

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
    """All that a choice of channels may look at.

    Attributes:
        model: the network.
        structure: what was read from it.
        calibration: the dense network and inputs to run it on, made when they are first asked for.
        loss: a function of network and batch, where the rewrite was given one.
    """

    model: nn.Module
    structure: Structure
    calibration: LazyCalibration
    loss: Callable[[nn.Module, Any], Tensor] | None = None

    @property
    def batches(self) -> list[Any] | None:
        """The batches as the rewrite was given them."""
        return self.calibration.batches


class ChannelSelector:
    """How a width is made smaller."""

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        """(channels,) the cluster of each channel, or -1, so that each block keeps ``kept``."""
        raise NotImplementedError

    def approximate(self, width: PrunableGroup, kept: int) -> Tensor:
        """The same, perhaps less good but fast: what a size costs is measured with it."""
        return self.assign(width, kept)

    def scales(self, width: PrunableGroup) -> Tensor:
        """(channels,) what each channel is divided by before it is merged with others."""
        return torch.ones(width.group.size, dtype=torch.float64)

    def refused(self, width: PrunableGroup) -> str | None:
        """Why this width stays as it is, or ``None``."""
        return None

    def notes(self, widths: list[PrunableGroup]) -> list[str]:
        """What the report should say of how the channels of ``widths`` were chosen."""
        return []
