"""The base class of importances, and helpers that several importances share."""

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
    """Scores the channels of a network. Subclass it to write your own.

    One object may score several networks, so it must not store anything about them. Values computed once per network
    belong in the function that :meth:`prepare` returns.
    """

    def prepare(self, context: SelectionContext) -> Score:
        """Return the function that scores the channels of a group.

        Args:
            context: the network, its structure, and ``context.calibration.get()``: the dense network and inputs to run
                it on. ``context.batches`` and ``context.loss`` are the arguments of ``prune``, or ``None``.

        Returns:
            A function of the network and a :class:`ChannelGroup` that returns (channels,) finite scores; channels with
            the highest scores are kept. Scores are compared only within a group.
        """
        raise NotImplementedError

    def notes(self, context: SelectionContext, groups: Sequence[ChannelGroup]) -> list[str]:
        """Notes for the report on how the channels of ``groups``, the groups that shrink, were chosen."""
        return []


class ScoreFunction(Importance):
    """A function of the network and a :class:`ChannelGroup` that returns a score for each channel."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def prepare(self, context: SelectionContext) -> Score:
        """Return the function itself."""
        return self.score


def channel_rows(model: nn.Module, member: Member, values: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """(channels, elements) all elements of each channel in one member."""
    moved = values(NetworkEditor(model).tensor(member.tensor)).movedim(member.dim, 0)
    return moved[member.indices.to(moved.device)].flatten(1)


def written_rows(model: nn.Module, group: ChannelGroup) -> Tensor:
    """(channels, elements) the weights with at least two dimensions that write ``group``; else all its members."""
    editor = NetworkEditor(model)
    found = [m for m in group.members if not m.reads and editor.tensor(m.tensor).dim() > 1]
    return torch.cat([channel_rows(model, member) for member in found or group.members], dim=1)
