"""How much a channel matters: norms of weights, first-order Taylor, activations, or least-squares reconstruction."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_fold.rewrites.calibration import Calibration, mean_squares, precise, second_moments
from lightning_fold.rewrites.channels.consumers import Consumer, find_consumers
from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.structure.groups import ChannelGroup, Member, Structure
from lightning_fold.surgery.editor import NetworkEditor

Importance = Literal["l1", "l2", "taylor", "activation", "reconstruction"]
Score = Callable[[nn.Module, ChannelGroup], Tensor]
Loss = Callable[[nn.Module, Any], Tensor]

IMPORTANCES = ("l1", "l2", "taylor", "activation", "reconstruction")
CALIBRATED = ("activation", "reconstruction")
_STEPS = 64  # the least important channels leave in at most so many steps


def channel_rows(model: nn.Module, member: Member, values: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """(channels, elements) everything that one member holds for each channel."""
    moved = values(NetworkEditor(model).tensor(member.tensor)).movedim(member.dim, 0)
    return moved[member.indices.to(moved.device)].flatten(1)


def writers(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The weights of at least two dimensions that write ``group``; where there are none, all its members."""
    editor = NetworkEditor(model)
    found = [m for m in group.members if not m.reads and editor.tensor(m.tensor).dim() > 1]
    return found or list(group.members)


def norm_score(order: int) -> Score:
    """The norm of all weights that write a channel."""

    def score(model: nn.Module, group: ChannelGroup) -> Tensor:
        joined = torch.cat([channel_rows(model, member) for member in writers(model, group)], dim=1)
        return precise(joined).norm(p=order, dim=1).cpu()

    return score


def taylor_score(model: nn.Module, batches: Iterable[Any], loss: Loss) -> Score:
    """|sum of weight times gradient| over all that writes a channel: what the loss moves without it, to first order.

    Frozen parameters have gradients, too, while this runs: what they write matters as much.

    Source: "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771), with the sum inside the modulus.
    """
    parameters = dict(model.named_parameters())
    kept = {name: (parameter.grad, parameter.requires_grad) for name, parameter in parameters.items()}
    with evaluation_mode(model), torch.enable_grad():
        try:
            for parameter in parameters.values():
                parameter.grad = None
                parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
            for batch in batches:
                loss(model, batch).backward()
            gradients = {n: p.grad.detach() if p.grad is not None else None for n, p in parameters.items()}
        finally:
            for name, parameter in parameters.items():
                parameter.grad, trained = kept[name]
                parameter.requires_grad_(trained)

    def score(model: nn.Module, group: ChannelGroup) -> Tensor:
        total = torch.zeros(group.size)
        for member in group.members:
            gradient = gradients.get(member.tensor)
            if member.reads or gradient is None:
                continue
            product = channel_rows(model, member, lambda tensor, g=gradient: precise(tensor.detach()) * precise(g))
            total += product.sum(1).float().cpu()
        return total.abs()

    return score


def calibrated_score(kind: str, structure: Structure, calibration: Calibration) -> Score:
    """Scores from second moments of the channels where they are read.

    ``"activation"``: the energy that a channel brings to its consumers, E[x_i^2] |w_i|^2, as a share of each one's.
    ``"reconstruction"``: the order in which channels leave when each time those go whose loss the others, by least
    squares, make up best (Optimal Brain Surgeon on blocks of columns; arXiv 2208.11580 for single weights). Of whole
    heads, and of channels that are flattened, it is the energy. Of channels that no layer reads for which this can be
    told (:func:`find_consumers`), both are the norm of the weights that write them.
    """
    consumers = {consumer.weight: consumer for consumer in find_consumers(structure)}
    squares = mean_squares(calibration, [consumer.path for consumer in consumers.values()])
    each_once = [c.path for c in consumers.values() if c.reads_each_once(structure)]
    moments = second_moments(calibration, each_once) if kind == "reconstruction" else {}

    def score(model: nn.Module, group: ChannelGroup) -> Tensor:
        read = [(m, consumers[m.tensor]) for m in group.members if m.reads and m.tensor in consumers]
        if not read:
            return norm_score(2)(model, group)
        if kind == "activation" or not all(c.path in moments for _, c in read):
            return _energy([(_columns(model, m), squares[c.path][m.indices]) for m, c in read])
        return _elimination([(_columns(model, m)[:, 0], _inner(moments, c, m)) for m, c in read])

    return score


def by_norm(structure: Structure) -> Callable[[ChannelGroup], bool]:
    """Whether :func:`calibrated_score` of a group is the norm of its weights: no layer that it looks at reads it."""
    looked_at = {consumer.weight for consumer in find_consumers(structure)}
    return lambda group: not any(member.reads and member.tensor in looked_at for member in group.members)


def _columns(model: nn.Module, member: Member) -> Tensor:
    """(channels, m, elements) the columns of each channel."""
    return channel_rows(model, member).double().cpu().unflatten(1, (member.indices.shape[1], -1))


def _inner(moments: dict[str, Tensor], consumer: Consumer, member: Member) -> Tensor:
    index = member.indices[:, 0]
    return moments[consumer.path][index][:, index]


def _energy(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Of columns (channels, m, elements) and the mean squares (channels, m) of what they read."""
    total = torch.zeros(len(parts[0][0]), dtype=torch.float64)
    for columns, squares in parts:
        energy = (columns.square().sum(2) * squares).sum(1)
        total += energy / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return total


def _elimination(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The rank of each channel: 0 for the first to leave."""
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
    """Columns and inverse moments once ``gone`` have left and least squares has made up for them."""
    gain = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stays]).T
    return columns[stays] - gain @ columns[gone], inverse[stays][:, stays] - gain @ inverse[gone][:, stays]
