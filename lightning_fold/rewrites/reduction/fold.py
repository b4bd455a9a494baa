"""fold: channels that do alike are merged into their cluster's mean; their consumers' columns are summed."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.calibration import CalibrationSource
from lightning_fold.rewrites.channels.compensated_norms import compensable
from lightning_fold.rewrites.channels.merge import is_whole
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.clustering import Clustering
from lightning_fold.rewrites.reduction.options import Compensate, Options
from lightning_fold.rewrites.reduction.pipeline import reduce_channels
from lightning_fold.rewrites.reduction.recovery.repairs.repair import Repair
from lightning_fold.rewrites.reduction.selector import ChannelSelector, SelectionContext
from lightning_fold.rewrites.size import Keep, Of, Size
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.operators import family


@on_network
def fold(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    keep: Keep = 0.5,
    of: Of = "parameters",
    compensate: Compensate = "none",
    repair: str | Repair = "data-free",
    batches: Iterable[Any] | None = None,
    calibration: str | CalibrationSource = "auto",
    seed: int = 0,
    skip: Sequence[str] = (),
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Merge the channels of every width of ``model``, in place, into k-means clusters.

    Each channel is described by all it writes and all that reads it. Producers take the mean of their cluster,
    consumers the sum, so identical channels merge without any change of the function; where a positive factor passes
    from producer to consumer (ReLU), so do channels that differ by one. Channels tied by residual connections share
    one clustering.

    Source: "Cut Less, Fold More" (arXiv 2602.18116) and "Model Folding" (arXiv 2502.10216), with Fold-AR as repair.

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
        compensate: ``"none"``; ``"bias"`` solves for the biases of the following layers, so that their mean outputs are
            those of the dense network; ``"least-squares"`` for their weights and biases, so that they give the dense
            network's outputs from the merged channels.
        repair: ``"data-free"`` rescales each BatchNorm that follows a merged layer by N / sqrt(N + (N^2 - N) E), N the
            size of the cluster and E the mean cosine of its rows, where the outputs' error on ``batches``, or on noise
            in their place, does not grow by it; ``"data"`` estimates BatchNorm statistics and tunes LayerNorms on
            ``batches``; ``"none"`` leaves them; or the path of a class of your own, or a :class:`Repair`.
        batches: of inputs, of (inputs, ...) as many as the network takes, or mappings; at least two, so that the last
            can be held out. Without them, what needs values predicts them from the BatchNorms' own statistics.
        calibration: where values inside the network come from: ``"auto"``, the ``batches`` or noise in their place;
            ``"noise"``; the path of a class or function of your own, or that itself.
        seed: seed of k-means, and of the noise that stands for data.
        skip: patterns, as in file names, of the dotted names of layers; what they write and read stays as it is.
        optimizers: optimizers of the network; moments are averaged over each cluster.

    Raises:
        TypeError: ``keep`` is neither a number nor a mapping.
        ValueError: a value is out of range, the budget cannot be met, a pattern matches nothing, or the network has
            no hidden width.
        RewriteError: the network does not run afterwards; everything is as it was before.
    """
    size = Size(keep, of)
    size.check("fold")
    options = Options.of("fold", compensate, repair, batches, calibration, seed, skip, merging=True)
    return reduce_channels("fold", model, example_inputs, size, options, optimizers, lambda s: _Folding(s, seed))


class _Folding(ChannelSelector):
    """Channels become their cluster."""

    def __init__(self, context: SelectionContext, seed: int) -> None:
        self.clustering = Clustering(context.model, context.structure, seed)
        self._reasons = _unmergeable(context.structure)

    def assign(self, width: PrunableGroup, kept: int) -> Tensor:
        return torch.arange(width.group.size) if kept == width.size else self.clustering.assign(width, kept)

    def approximate(self, width: PrunableGroup, kept: int) -> Tensor:
        return self.clustering.approximate(width, kept)

    def scales(self, width: PrunableGroup) -> Tensor:
        return self.clustering.scales(width)

    def refused(self, width: PrunableGroup) -> str | None:
        return next((self._reasons[c] for c in width.group.ids.tolist() if c in self._reasons), None)


def _unmergeable(structure: Structure) -> dict[int, str]:
    """The channels that share statistics with others, or are multiplied with others, in a way that merging changes."""
    reasons = {}
    for blocks in structure.labels.blocks:
        if blocks.shared_statistics:
            for channel in structure.group_of[blocks.sides[0]].flatten().tolist():
                reasons[channel] = f"{blocks.layer or 'the network'} {blocks.reason}"
    for norm in structure.labels.norms:
        counts = family(norm.node) not in ("layer_norm", "global_response_norm") or compensable(structure, norm)
        if norm.channels is not None and not counts and not is_whole(structure.group_of[norm.channels]):
            for channel in structure.group_of[norm.channels].flatten().tolist():
                reasons[channel] = f"{layer_of(norm.node) or 'the network'} is a norm that cannot count merged channels"
    for labels, reason in structure.columns.unsummed:
        reasons.update(dict.fromkeys(structure.group_of[labels].tolist(), reason))
    for product in structure.labels.products:
        if product.writer is None and not is_whole(structure.group_of[product.channels]):
            for channel in structure.group_of[product.channels].flatten().tolist():
                reasons[channel] = "is summed in a product whose factors are not written by one layer each"
    return reasons
