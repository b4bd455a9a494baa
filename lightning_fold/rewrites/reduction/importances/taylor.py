"""First-order Taylor importance: the estimated change of the loss without a channel."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.errors import ArgumentError
from lightning_fold.rewrites.calibration import precise
from lightning_fold.rewrites.reduction.importances.importance import Importance, Loss, Score, channel_rows
from lightning_fold.rewrites.reduction.selector import SelectionContext
from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.structure.groups import ChannelGroup


class Taylor(Importance):
    """|sum of weight times gradient| over the weights that write a channel: the first-order change of the loss.

    Source: "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771), with the sum inside the absolute
    value.

    Args:
        loss: a function of network and batch; ``None`` uses the ``loss`` passed to ``prune``.
    """

    def __init__(self, loss: Loss | None = None) -> None:
        self.loss = loss

    def prepare(self, context: SelectionContext) -> Score:
        """Compute the gradients of the loss on the batches.

        Raises:
            ArgumentError: ``batches`` or ``loss`` is missing.
        """
        loss = self.loss or context.loss
        if context.batches is None or loss is None:
            raise ArgumentError(
                "prune(importance='taylor'): expected batches=... and loss=..., for example "
                "loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1])."
            )
        return taylor_score(context.model, context.batches, loss)


def taylor_score(model: nn.Module, batches: Iterable[Any], loss: Loss) -> Score:
    """The score function for the gradients of ``loss`` on ``batches``.

    Frozen parameters count too: the channels that they write matter just as much.
    """
    gradients = _gradients(model, batches, loss)

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


def _gradients(model: nn.Module, batches: Iterable[Any], loss: Loss) -> dict[str, Tensor | None]:
    """The summed gradient of every parameter; the parameters themselves are not changed."""
    parameters = dict(model.named_parameters())
    kept = {name: (parameter.grad, parameter.requires_grad) for name, parameter in parameters.items()}
    with evaluation_mode(model), torch.enable_grad():
        try:
            for parameter in parameters.values():
                parameter.grad = None
                parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
            for batch in batches:
                loss(model, batch).backward()
            return {n: p.grad.detach() if p.grad is not None else None for n, p in parameters.items()}
        finally:
            for name, parameter in parameters.items():
                parameter.grad, trained = kept[name]
                parameter.requires_grad_(trained)
