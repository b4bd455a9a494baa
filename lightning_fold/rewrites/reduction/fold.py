"""fold: similar channels are merged into the mean of their cluster; their consumers' columns are summed."""

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
from lightning_fold.structure.operators.nodes import family


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

    Each channel is described by the weights that write it and the weights that read it. Producers get the mean of each
    cluster, consumers the sum, so merging identical channels does not change the function. Where a positive factor
    passes from producer to consumer (ReLU), this also holds for channels that differ by such a factor. Channels tied by
    residual connections share one clustering.

    Source: "Cut Less, Fold More" (arXiv 2602.18116) and "Model Folding" (arXiv 2502.10216), with Fold-AR as repair.

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
        compensate: ``"none"``; ``"bias"`` fits the biases of the following layers so that their mean outputs match the
            dense network; ``"least-squares"`` also fits their weights, so that their outputs match the dense network.
        repair: ``"data-free"`` rescales each BatchNorm that follows a merged layer by N / sqrt(N + (N^2 - N) E), with
            cluster size N and mean cosine E of the cluster's rows, unless this increases the error of the outputs on
            ``batches`` or, without them, on noise; ``"data"`` re-estimates BatchNorm statistics and tunes LayerNorms
            on ``batches``; ``"none"``; the path of your own class; or a :class:`Repair`.
        batches: an iterable of batches: tensors of inputs, tuples that start with the inputs of the network, or
            mappings. Use at least two: the last is held out. Without batches, values inside the network are estimated
            from noise and the BatchNorms' parameters.
        calibration: source of the values inside the network: ``"auto"``, the ``batches`` or, without them, noise;
            ``"noise"``; the path of your own class or function; or such an object.
        seed: seed of k-means and of the noise that replaces data.
        skip: glob patterns of dotted layer names; the widths that these layers write or read do not shrink.
        optimizers: optimizers of the network; optimizer state is averaged over each cluster.

    Raises:
        ArgumentTypeError: ``keep`` is neither a number nor a mapping, or another argument has the wrong type.
        ArgumentError: a value is out of range, the budget cannot be met, a pattern matches nothing, or the network has
            no hidden width.
        TraceError: ``torch.export`` cannot trace the network.
        RewriteError: the network does not run afterwards; all changes are undone.
    """
    size = Size(keep, of)
    size.check("fold")
    options = Options.of("fold", compensate, repair, batches, calibration, seed, skip, merging=True)
    return reduce_channels("fold", model, example_inputs, size, options, optimizers, lambda s: _Folding(s, seed))


class _Folding(ChannelSelector):
    """Merges the channels of each cluster."""

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
    """Channels that cannot be merged, and why: merging would change statistics or products that they share."""
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
