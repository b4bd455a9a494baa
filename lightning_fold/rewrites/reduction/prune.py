"""prune: whole channels, by importance."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.calibration import CalibrationSource
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.importances import importance_of
from lightning_fold.rewrites.reduction.importances.importance import Importance, Loss, Score
from lightning_fold.rewrites.reduction.options import Compensate, Options
from lightning_fold.rewrites.reduction.pipeline import reduce_channels
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.reduction.selector import ChannelSelector, SelectionContext
from lightning_fold.rewrites.size import Keep, Of, Size
from lightning_fold.rewrites.wrappers import on_network


@on_network
def prune(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    keep: Keep = 0.5,
    of: Of = "parameters",
    importance: str | Importance | Score = "l2",
    compensate: Compensate = "none",
    repair: str | Repair = "none",
    batches: Iterable[Any] | None = None,
    calibration: str | CalibrationSource = "auto",
    loss: Loss | None = None,
    seed: int = 0,
    skip: Sequence[str] = (),
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Remove the least important channels of every width of ``model``, in place.

    Args:
        model: any network that ``torch.export`` can trace.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.
        keep: share that stays, in (0, 1], or a mapping from patterns of dotted layer names, as in file names, to such
            shares: the first pattern that matches a layer counts, ``"*"`` stands for the rest. At least one channel of
            each width stays.
        of: what ``keep`` is a share of. ``"parameters"`` and ``"flops"`` are budgets over the network: each width gives
            as many channels as its measured effect on the outputs allows. In a mapping ``"*"`` is then the share of the
            network, and the layers that another pattern matches keep at least its share of their channels.
            ``"channels"``: each width keeps that share of its channels; what no pattern matches stays as it is.
        importance: ``"l1"`` or ``"l2"`` norm of the weights that write a channel; ``"taylor"``, |weight times gradient|
            of ``loss`` on ``batches``; ``"activation"``, the energy that a channel brings to its consumers;
            ``"reconstruction"``, what its consumers lose when the other channels make up for it; the path of a class of
            your own, an :class:`Importance`, or a function of the network and a :class:`ChannelGroup` that returns a
            score for each channel.
        compensate: ``"none"``; ``"bias"`` solves for the biases of the following layers, so that their mean outputs are
            those of the dense network; ``"least-squares"`` for their weights and biases, so that they give the dense
            network's outputs from the channels left.
        repair: ``"none"``; ``"data"`` estimates BatchNorm statistics and tunes LayerNorms on ``batches``; or the path
            of a class of your own, or a :class:`Repair`.
        batches: of inputs, of (inputs, ...) as many as the network takes, or mappings; at least two, so that the last
            can be held out. Without them, what needs values predicts them from the BatchNorms' own statistics.
        calibration: where values inside the network come from: ``"auto"``, the ``batches`` or noise in their place;
            ``"noise"``; the path of a class or function of your own, or that itself.
        loss: a function of network and batch, for ``"taylor"``.
        seed: seed of the noise that stands for data.
        skip: patterns, as in file names, of the dotted names of layers; what they write and read stays as it is.
        optimizers: optimizers of the network; they go on with the moments of what stays.

    Raises:
        TypeError: ``keep`` is neither a number nor a mapping.
        ValueError: a value is out of range, the budget cannot be met, a pattern matches nothing, or no channel of
            the network can be removed.
        RewriteError: the network does not run afterwards; everything is as it was before.
    """
    size = Size(keep, of)
    size.check("prune")
    chosen = importance_of("prune", importance)
    options = Options.of("prune", compensate, repair, batches, calibration, seed, skip, merging=False)

    def choose(context: SelectionContext) -> ChannelSelector:
        return _Selection(replace(context, loss=loss), chosen)

    return reduce_channels("prune", model, example_inputs, size, options, optimizers, choose)


class _Selection(ChannelSelector):
    """The channels with the highest scores stay."""

    def __init__(self, context: SelectionContext, importance: Importance) -> None:
        self.context, self.importance, self.score = context, importance, importance.prepare(context)
        self._scores: dict[int, Tensor] = {}

    def notes(self, widths: list[PrunableGroup]) -> list[str]:
        return self.importance.notes(self.context, [width.group for width in widths])

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        key = int(width.group.ids[0])
        if key not in self._scores:
            self._scores[key] = self._checked(width)
        scores = self._scores[key]
        staying = torch.zeros(width.group.size, dtype=torch.bool)
        for block in width.blocks:
            order = block[scores[block].argsort(stable=True)]
            staying[order[len(order) - width.kept_in(block, kept) :]] = True
        assignment = torch.full((width.group.size,), -1)
        assignment[staying] = torch.arange(int(staying.sum()))
        return assignment

    def _checked(self, width: PrunableGroup) -> Tensor:
        scores = torch.as_tensor(self.score(self.context.model, width.group)).detach().cpu()
        if scores.shape != (width.group.size,) or not bool(torch.isfinite(scores).all()):
            raise ArgumentError(
                f"prune(importance=...): the scores of {width.group.name} have shape {tuple(scores.shape)} or are not "
                f"finite; expected {width.group.size} finite numbers, one for each channel."
            )
        return scores
