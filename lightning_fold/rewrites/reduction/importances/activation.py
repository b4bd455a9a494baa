"""The energy that a channel contributes to its consumers, on data or as predicted by its BatchNorm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_fold.report import some_of
from lightning_fold.rewrites.calibration import mean_squares
from lightning_fold.rewrites.channels.consumers import ONLY_SOLVED, Consumer, find_consumers
from lightning_fold.rewrites.reduction.importances.importance import Importance, Score, channel_rows
from lightning_fold.rewrites.reduction.importances.norm import Norm
from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.structure.groups import ChannelGroup, Member, Structure

Read = list[tuple[Member, Consumer]]  # the members of a group that consumers read, and the consumers


class Activation(Importance):
    """The energy of a channel, E[x_i^2] |w_i|^2, as a share of each consumer's total, summed over the consumers.

    Channels without a suitable consumer (:func:`find_consumers`) are scored by the norm of the weights that write them;
    the report notes this.
    """

    name = "activation"

    def prepare(self, context: SelectionContext) -> Score:
        """Compute the mean squares of the inputs of all consumers."""
        consumers = _by_weight(context.structure)
        squares = mean_squares(context.calibration.get(), [consumer.path for consumer in consumers.values()])
        return lambda model, group: self.score(model, group, read_by(group, consumers), squares)

    def score(self, model: nn.Module, group: ChannelGroup, read: Read, squares: dict[str, Tensor]) -> Tensor:
        """(channels,) energies, or norms if ``read`` is empty; ``squares`` are mean squares of consumers' inputs."""
        if not read:
            return Norm().score(model, group)
        total = torch.zeros(group.size, dtype=torch.float64)
        for member, consumer in read:
            weights = read_columns(model, member).square().sum(2)
            energy = (weights * squares[consumer.path][member.indices]).sum(1)
            total += energy / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
        return total

    def notes(self, context: SelectionContext, groups: Sequence[ChannelGroup]) -> list[str]:
        """A note on the groups that were scored by the norm."""
        consumers = _by_weight(context.structure)
        names = some_of(group.name for group in groups if not read_by(group, consumers))
        found = f"importance={self.name!r} was replaced by the norm of the weights in {names}"
        return [f"{found}: among the readers of channels, it uses {ONLY_SOLVED}"] if names else []


def read_by(group: ChannelGroup, consumers: dict[str, Consumer]) -> Read:
    """The members of ``group`` that ``consumers`` read, with their consumers."""
    return [(m, consumers[m.tensor]) for m in group.members if m.reads and m.tensor in consumers]


def read_columns(model: nn.Module, member: Member) -> Tensor:
    """(channels, m, elements) the columns of each channel."""
    return channel_rows(model, member).double().cpu().unflatten(1, (member.indices.shape[1], -1))


def _by_weight(structure: Structure) -> dict[str, Consumer]:
    return {consumer.weight: consumer for consumer in find_consumers(structure)}
