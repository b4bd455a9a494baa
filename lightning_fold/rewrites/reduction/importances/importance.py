"""What an importance is, and what several of them share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.structure.groups import ChannelGroup, Member
from lightning_fold.surgery.editor import NetworkEditor

Score = Callable[[nn.Module, ChannelGroup], Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


class Importance:
    """How much the channels of a network matter. Subclass it for one of your own.

    An object may serve several networks, so it keeps nothing about any: what is computed once for a network belongs to
    the function that :meth:`prepare` returns.
    """

    def prepare(self, context: SelectionContext) -> Score:
        """The function that scores the channels of a group.

        Args:
            context: the network, its structure, and ``context.calibration.get()``: the dense network and inputs to run
                it on. ``context.batches`` and ``context.loss`` are what ``prune`` was given, or ``None``.

        Returns:
            A function of the network and a :class:`ChannelGroup` that returns (channels,) finite scores; the highest
            ones stay. Scores are compared within a group only.
        """
        raise NotImplementedError

    def notes(self, context: SelectionContext, groups: Sequence[ChannelGroup]) -> list[str]:
        """What the report should say of how the channels of ``groups``, those that shrink, were chosen."""
        return []


class ScoreFunction(Importance):
    """A function of the network and a :class:`ChannelGroup` that returns a score for each channel."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def prepare(self, context: SelectionContext) -> Score:
        """The function itself."""
        return self.score


def channel_rows(model: nn.Module, member: Member, values: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """(channels, elements) everything that one member holds for each channel."""
    moved = values(NetworkEditor(model).tensor(member.tensor)).movedim(member.dim, 0)
    return moved[member.indices.to(moved.device)].flatten(1)


def written_rows(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels, elements) the weights of two dimensions and more that write ``group``; all its members without any."""
    editor = NetworkEditor(model)
    found = [m for m in group.members if not m.reads and editor.tensor(m.tensor).dim() > 1]
    return torch.cat([channel_rows(model, member) for member in found or group.members], dim=1)
