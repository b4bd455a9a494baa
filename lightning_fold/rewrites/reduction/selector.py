"""How a width is made smaller: the part of prune and fold that differs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_fold.rewrites.calibration import Calibration
from lightning_fold.rewrites.channels.widths import Width
from lightning_fold.structure.groups import Structure
from lightning_fold.surgery.transaction import Surgery


@dataclass
class Setting:
    """All that a choice of channels may look at."""

    model: nn.Module
    surgery: Surgery
    structure: Structure
    calibrate: Callable[[], Calibration]


class Chooser:
    """How a width is made smaller."""

    def assign(self, width: Width, kept: int) -> Tensor:
        """(channels,) the cluster of each channel, or -1, so that each block keeps ``kept``."""
        raise NotImplementedError

    def sketch(self, width: Width, kept: int) -> Tensor:
        """The same, perhaps less good but fast: what a size costs is measured with it."""
        return self.assign(width, kept)

    def lengths(self, width: Width) -> Tensor:
        """(channels,) what each channel is divided by before it is merged with others."""
        return torch.ones(width.group.size, dtype=torch.float64)

    def refused(self, width: Width) -> str | None:
        """Why this width stays as it is, or ``None``."""
        return None

    def notes(self, widths: list[Width]) -> list[str]:
        """What the report should say of how the channels of ``widths`` were chosen."""
        return []
