"""prune: remove whole channels by importance."""

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
        keep: the share to keep, in (0, 1], or a mapping from glob patterns of dotted layer names to such shares: the
            first pattern that matches a layer counts, ``"*"`` is for the remaining layers. Each width keeps at least
            one channel.
        of: what ``keep`` is a share of. ``"parameters"`` and ``"flops"`` are budgets for the whole network: widths with
            little measured effect on the outputs lose more channels. In a mapping, ``"*"`` is then the share of the
            network, and layers that another pattern matches keep at least its share of their channels.
            ``"channels"``: each width keeps that share of its channels; layers that no pattern matches do not change.
        importance: ``"l1"`` or ``"l2"`` norm of the weights that write a channel; ``"taylor"``, |weight times gradient|
            of ``loss`` on ``batches``; ``"activation"``, the energy that a channel contributes to its consumers;
            ``"reconstruction"``, the error of its consumers after least squares on the other channels; the path of your
            own class; an :class:`Importance`; or a function of the network and a :class:`ChannelGroup` that returns a
            score for each channel.
        compensate: ``"none"``; ``"bias"`` fits the biases of the following layers so that their mean outputs match the
            dense network; ``"least-squares"`` also fits their weights, so that their outputs match the dense network.
        repair: ``"none"``; ``"data"`` re-estimates BatchNorm statistics and tunes LayerNorms on ``batches``; the path
            of your own class; or a :class:`Repair`.
        batches: an iterable of batches: tensors of inputs, tuples that start with the inputs of the network, or
            mappings. Use at least two: the last is held out. Without batches, values inside the network are estimated
            from noise and the BatchNorms' parameters.
        calibration: source of the values inside the network: ``"auto"``, the ``batches`` or, without them, noise;
            ``"noise"``; the path of your own class or function; or such an object.
        loss: a function of network and batch, for ``"taylor"``.
        seed: seed of the noise that replaces data.
        skip: glob patterns of dotted layer names; the widths that these layers write or read do not shrink.
        optimizers: optimizers of the network; optimizer state of the remaining weights is kept.

    Raises:
        ArgumentTypeError: ``keep`` is neither a number nor a mapping, or another argument has the wrong type.
        ArgumentError: a value is out of range, the budget cannot be met, a pattern matches nothing, or no channel of
            the network can be removed.
        TraceError: ``torch.export`` cannot trace the network.
        RewriteError: the network does not run afterwards; all changes are undone.
    """
    size = Size(keep, of)
    size.check("prune")
    chosen = importance_of("prune", importance)
    options = Options.of("prune", compensate, repair, batches, calibration, seed, skip, merging=False)

    def choose(context: SelectionContext) -> ChannelSelector:
        return _Selection(replace(context, loss=loss), chosen)

    return reduce_channels("prune", model, example_inputs, size, options, optimizers, choose)


class _Selection(ChannelSelector):
    """Keeps the channels with the highest scores."""

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
