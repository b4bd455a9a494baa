"""Least-squares reconstruction: first remove the channels that the others compensate for best."""

import torch
from torch import Tensor, nn

from lightning_fold.rewrites.calibration import mean_squares, second_moments
from lightning_fold.rewrites.channels.consumers import Consumer, find_consumers
from lightning_fold.rewrites.reduction.importances.activation import Activation, read_by, read_columns
from lightning_fold.rewrites.reduction.importances.importance import Score
from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.structure.groups import ChannelGroup, Member

_STEPS = 64  # channels are removed in about this many steps, or one by one


class Reconstruction(Activation):
    """The rank of a channel if each step removes the channels that least squares on the others compensates for best.

    Whole heads and flattened channels are scored by their energy, as in :class:`Activation`.

    Source: Optimal Brain Surgeon, on blocks of columns; arXiv 2208.11580 for single weights.
    """

    name = "reconstruction"

    def prepare(self, context: SelectionContext) -> Score:
        """Compute the second moments of the inputs of all consumers."""
        consumers = {consumer.weight: consumer for consumer in find_consumers(context.structure)}
        calibration = context.calibration.get()
        squares = mean_squares(calibration, [consumer.path for consumer in consumers.values()])
        each_once = [c.path for c in consumers.values() if c.reads_each_once(context.structure)]
        moments = second_moments(calibration, each_once)

        def score(model: nn.Module, group: ChannelGroup) -> Tensor:
            read = read_by(group, consumers)
            if not read or not all(consumer.path in moments for _, consumer in read):
                return self.score(model, group, read, squares)
            return _elimination([(read_columns(model, m)[:, 0], _inner(moments, c, m)) for m, c in read])

        return score


def _inner(moments: dict[str, Tensor], consumer: Consumer, member: Member) -> Tensor:
    index = member.indices[:, 0]
    return moments[consumer.path][index][:, index]


def _elimination(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The rank of each channel: 0 for the first to be removed."""
    count = len(parts[0][0])
    states = []
    for columns, moments in parts:
        damped = moments + 1e-4 * moments.diagonal().mean().clamp_min(1e-30) * torch.eye(count, dtype=torch.float64)
        energy = (columns * (moments @ columns)).sum().clamp_min(torch.finfo(columns.dtype).tiny)
        states.append((columns / energy.sqrt(), torch.linalg.inv(damped)))
    left, ranks = torch.arange(count), torch.zeros(count)
    while len(left):
        cost = sum(
            (columns.square().sum(1) / inverse.diagonal() for columns, inverse in states), torch.zeros(len(left))
        )
        gone = cost.argsort(stable=True)[: max(1, count // _STEPS)]
        ranks[left[gone]] = torch.arange(count - len(left), count - len(left) + len(gone), dtype=ranks.dtype)
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[gone] = False
        states = [_without(columns, inverse, gone, stays) for columns, inverse in states]
        left = left[stays]
    return ranks


def _without(columns: Tensor, inverse: Tensor, gone: Tensor, stays: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and inverse moments after ``gone`` are removed and compensated for by least squares."""
    gain = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stays]).T
    return columns[stays] - gain @ columns[gone], inverse[stays][:, stays] - gain @ inverse[gone][:, stays]
