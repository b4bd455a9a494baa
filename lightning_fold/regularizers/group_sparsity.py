"""Group sparsity: the L2,1 norm over channel groups, which drives whole channels to zero."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_fold.regularizers.penalty import WeightAxis, dimensions
from lightning_fold.structure.groups import ChannelGroup


def group_sparsity(weight: Tensor, axes: Sequence[WeightAxis] = ("output",)) -> Tensor:
    """The L2,1 norm of one weight (O, I, ...): the sum of the norms of its slices along each axis, a scalar.

    :class:`GroupSparsity` combines all weights that write or read a channel; this function needs no graph of the
    network.

    Args:
        weight: (O, I, ...), floating point; a slice that is zero has gradient zero.
        axes: "output" for dimension 0, "input" for dimension 1, "space" for all others. Dimensions that the weight
            lacks add nothing.

    Raises:
        ArgumentError: an axis has another name.
    """
    slices = [weight.movedim(dim, 0).flatten(1) for dim in dimensions(weight, axes)]
    norms = [
        torch.linalg.vector_norm(each.to(torch.promote_types(each.dtype, torch.float32)), dim=1) for each in slices
    ]
    return torch.cat(norms or [weight.flatten()[:0]]).sum()


class GroupSparsity:
    """The penalty sum_g ||w_g|| over the channels of a network; w_g holds all parameters that write or read channel g.

    Its proximal step reduces every norm by the same amount, so weak channels become zero as a whole.

    Source: group lasso (Yuan and Lin 2006), over the channel groups of the network's graph.

    Args:
        network: the network; its parameters are looked up by name, so its structure must not change.
        groups: its channel groups, as ``channel_groups`` returns them; pinned ones are left out.
    """

    def __init__(self, network: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        parameters = dict(network.named_parameters())
        self._groups = [
            (group.size, [(parameters[m.tensor], m.dim, m.indices) for m in group.members if m.tensor in parameters])
            for group in groups
            if group.pinned is None and group.size > 1
        ]

    def norms(self) -> list[Tensor]:
        """The norm of every channel, one tensor of shape (channels,) for each group."""
        return [self._norms(size, members) for size, members in self._groups]

    def value(self) -> Tensor:
        """The penalty, a differentiable scalar; a channel that is zero has gradient zero."""
        return torch.stack([norms.sum() for norms in self.norms()]).sum() if self._groups else torch.zeros(())

    @torch.no_grad()
    def shrink(self, threshold: float) -> None:
        """Reduce the norm of every channel by ``threshold``, in place: the proximal step of the penalty.

        A channel whose norm is smaller becomes exactly zero. A weight between two channels shrinks with both.
        """
        norms = self.norms()
        for (_, members), norm in zip(self._groups, norms, strict=True):
            factors = (1 - threshold / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_min(0)
            for parameter, dim, indices in members:
                scale = torch.ones(parameter.shape[dim], dtype=parameter.dtype, device=parameter.device)
                scale[indices.to(parameter.device)] = factors[:, None].to(scale).expand(indices.shape)
                view = [1] * parameter.dim()
                view[dim] = -1
                parameter.mul_(scale.reshape(view))

    @staticmethod
    def _norms(size: int, members: list[tuple[nn.Parameter, int, Tensor]]) -> Tensor:
        parts = []
        for parameter, dim, indices in members:
            others = [d for d in range(parameter.dim()) if d != dim]
            squares = parameter.square().sum(others) if others else parameter.square()
            parts.append(squares[indices.to(parameter.device)].sum(1))
        if not parts:
            return torch.zeros(size)
        squares = torch.stack(parts).sum(0)
        empty = squares == 0  # the square root has no gradient at zero
        return torch.where(empty, 1, squares).sqrt() * ~empty
