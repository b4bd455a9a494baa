"""prune: whole channels, by importance."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport, some_of
from lightning_fold.rewrites.channels.consumers import ONLY_SOLVED
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.importance import (
    CALIBRATED,
    IMPORTANCES,
    Importance,
    Loss,
    Score,
    by_norm,
    calibrated_score,
    norm_score,
    taylor_score,
)
from lightning_fold.rewrites.reduction.options import Compensate, Options, Repair
from lightning_fold.rewrites.reduction.pipeline import reduce_channels
from lightning_fold.rewrites.reduction.selector import ChannelSelector, SelectionContext
from lightning_fold.rewrites.size import Keep, Of, Size
from lightning_fold.rewrites.wrappers import on_network

__all__ = ["Importance", "prune"]


@on_network
def prune(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    keep: Keep = 0.5,
    of: Of = "parameters",
    importance: Importance | Score = "l2",
    compensate: Compensate = "none",
    repair: Repair = "none",
    batches: Iterable[Any] | None = None,
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
            ``"reconstruction"``, what its consumers lose when the other channels make up for it; or a function of
            the network and a :class:`ChannelGroup` that returns a score for each channel.
        compensate: ``"none"``; ``"bias"`` solves for the biases of the following layers, so that their mean outputs are
            those of the dense network; ``"least-squares"`` for their weights and biases, so that they give the dense
            network's outputs from the channels left.
        repair: ``"none"``; ``"data"`` estimates BatchNorm statistics and tunes LayerNorms on ``batches``.
        batches: of inputs, of (inputs, ...) as many as the network takes, or mappings; at least two, so that the last
            can be held out. Without them, what needs values predicts them from the BatchNorms' own statistics.
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
    if not callable(importance) and importance not in IMPORTANCES:
        known = ", ".join(map(repr, IMPORTANCES[:-1]))
        raise ArgumentError(f"prune(importance={importance!r}): expected {known}, {IMPORTANCES[-1]!r} or a function.")
    if importance == "taylor" and (batches is None or loss is None):
        raise ArgumentError(
            "prune(importance='taylor'): expected batches=... and loss=..., for example "
            "loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1])."
        )
    size = Size(keep, of)
    size.check("prune")
    options = Options(compensate, repair, None if batches is None else list(batches), seed, skip)
    options.check("prune", ("none", "data"))

    def choose(context: SelectionContext) -> ChannelSelector:
        return _Selection(context, _score(context, importance, options, loss), importance)

    return reduce_channels("prune", model, example_inputs, size, options, optimizers, choose)


def _score(context: SelectionContext, importance: Importance | Score, options: Options, loss: Loss | None) -> Score:
    if not isinstance(importance, str):
        return importance
    if importance in CALIBRATED:
        return calibrated_score(importance, context.structure, context.calibration.get())
    if importance == "taylor":
        assert loss is not None and options.batches is not None
        return taylor_score(context.model, options.batches, loss)
    return norm_score(int(importance[1]))


class _Selection(ChannelSelector):
    """The channels with the highest scores stay."""

    def __init__(self, context: SelectionContext, score: Score, importance: Importance | Score) -> None:
        self.model, self.score, self.importance = context.model, score, importance
        self._by_norm = by_norm(context.structure) if importance in CALIBRATED else lambda group: False
        self._scores: dict[int, Tensor] = {}

    def notes(self, widths: list[PrunableGroup]) -> list[str]:
        names = some_of(width.group.name for width in widths if self._by_norm(width.group))
        found = f"importance={self.importance!r} was the norm of the weights in {names}"
        return [f"{found}: of what reads channels, {ONLY_SOLVED} are looked at"] if names else []

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
        scores = torch.as_tensor(self.score(self.model, width.group)).detach().cpu()
        if scores.shape != (width.group.size,) or not bool(torch.isfinite(scores).all()):
            raise ArgumentError(
                f"prune(importance=...): the scores of {width.group.name} have shape {tuple(scores.shape)} or are not "
                f"finite; expected {width.group.size} finite numbers, one for each channel."
            )
        return scores
