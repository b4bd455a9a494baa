"""fold: channels that do alike are merged into their cluster's mean; their consumers' columns are summed."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.report import Kept, RewriteReport
from lightning_fold.rewrites.pruning import channel_rows, channels_left, kept_groups, shrinkable_groups
from lightning_fold.rewrites.transaction import rewrite
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.structure.groups import ChannelGroup, Structure, reading_axes
from lightning_fold.structure.labels import Axis, Blocks
from lightning_fold.structure.operators import batch_norm_eps, family, oriented
from lightning_fold.structure.trace import Inputs
from lightning_fold.surgery import Surgery

Repair = Literal["data-free", "none"]

_STARTS: Any = 3  # scikit-learn annotates it as a string


@on_network
def fold(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    ratio: float = 0.5,
    repair: Repair = "data-free",
    seed: int = 0,
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Merge the channels of every width of ``model``, in place, into k-means clusters.

    Each channel is described by all it writes and all that reads it. Producers take the mean of their cluster,
    consumers the sum, so identical channels merge without any change of the function. Channels tied by residual
    connections share one clustering.

    Source: "Cut Less, Fold More" (arXiv 2602.18116) and "Model Folding" (arXiv 2502.10216), with Fold-AR as repair.

    Args:
        model: any network that ``torch.export`` can trace.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        ratio: share of the channels of each group that goes, in [0, 1); at least one channel stays.
        repair: ``"data-free"`` rescales each BatchNorm that follows a merged layer by N / sqrt(N + (N^2 - N) E), N the
            size of the cluster and E the mean cosine of its rows; ``"none"`` leaves them.
        seed: seed of k-means.
        optimizers: optimizers of the network; moments are averaged over each cluster.

    Raises:
        ValueError: ``ratio`` or ``repair`` is out of range, or no channel of the network can be merged.
        RewriteError: the network does not run afterwards; everything is as it was before.
    """
    if repair not in ("data-free", "none"):
        raise ValueError(f"fold(repair={repair!r}): expected 'data-free' or 'none'.")
    structure, groups = shrinkable_groups("fold", model, example_inputs, ratio)
    blocks = _in_blocks(structure)

    def change(surgery: Surgery) -> list[Kept]:
        cluster_of = torch.arange(structure.count)
        for group in groups:
            if not blocks.keys() & set(group.ids.tolist()):
                cluster_of[group.ids] = group.ids[_cluster(surgery, group, channels_left(group, ratio), seed)]
        scales = _batch_norm_scales(surgery, structure, cluster_of) if repair == "data-free" else {}
        merge(surgery, structure, cluster_of)
        for name, scale in scales.items():
            surgery.transform(name, lambda gamma, s=scale: gamma * s, moments=lambda moment: moment)
        return kept_groups(structure) + _unfolded(groups, blocks)

    return rewrite("fold", model, example_inputs, optimizers, change)


def merge(surgery: Surgery, structure: Structure, cluster_of: Tensor) -> None:
    """Merge channels: ``cluster_of`` (groups,) names, for every group, the group that stands for its cluster."""
    reading = reading_axes(structure)
    for (name, dim), axis in structure.labels.axes.items():
        matrix = membership(structure, axis, cluster_of)
        if matrix.shape[0] < matrix.shape[1]:
            average = matrix / matrix.sum(1, keepdim=True)
            combine = matrix if (name, dim) in reading else average
            surgery.transform(name, _along(combine, dim), moments=_along(average, dim))
    for contraction in structure.labels.contractions:
        name = structure.trace.names.get(contraction.weight)
        if contraction.groups > 1 and name is not None and contraction.rows is not None:
            each = len(contraction.rows) // contraction.groups
            if surgery.tensor(name).shape[1] == 1:
                surgery.set_groups(name, surgery.tensor(name).shape[0] // each)


def membership(structure: Structure, axis: Axis, cluster_of: Tensor) -> Tensor:
    """(clusters, size) 0/1 membership of the indices of one dimension, in the order in which clusters appear.

    A group that owns several indices (after a flatten) merges with the same positions of the other groups.
    """
    groups = structure.groups(axis)
    keys = list(zip(cluster_of[groups].tolist(), _occurrences(groups), strict=True))
    order = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    matrix = torch.zeros(len(order), axis.size, dtype=torch.float64)
    matrix[[order[key] for key in keys], torch.arange(axis.size)] = 1
    return matrix


def _occurrences(groups: Tensor) -> list[int]:
    """For every index, how many times its group has come before."""
    seen: dict[int, int] = {}
    counts = []
    for group in groups.tolist():
        counts.append(seen.get(group, 0))
        seen[group] = counts[-1] + 1
    return counts


def _along(matrix: Tensor, dim: int):
    def apply(tensor: Tensor) -> Tensor:
        moved = tensor.movedim(dim, 0)
        merged = matrix.to(tensor) @ moved.reshape(len(moved), -1)
        return merged.reshape(len(matrix), *moved.shape[1:]).movedim(0, dim)

    return apply


def _cluster(surgery: Surgery, group: ChannelGroup, clusters: int, seed: int) -> Tensor:
    """(channels,) for each channel the first channel of its cluster."""
    parts = [channel_rows(surgery, member) for member in group.members if not member.tensor.endswith("running_mean")]
    scaled = [part / part.norm().clamp_min(torch.finfo(part.dtype).tiny) for part in parts]
    features = _coordinates(torch.cat(scaled, dim=1).double().cpu()).numpy()
    distinct = len(np.unique(features, axis=0))
    labels = KMeans(min(clusters, distinct), n_init=_STARTS, random_state=seed).fit_predict(features)
    first = {label: index for index, label in reversed(list(enumerate(labels.tolist())))}
    return torch.tensor([first[label] for label in labels.tolist()])


def _coordinates(features: Tensor) -> Tensor:
    """The same points with the same distances in at most as many dimensions as there are points."""
    if features.shape[1] <= features.shape[0]:
        return features
    energies, directions = torch.linalg.eigh(features @ features.T)
    return directions * energies.clamp_min(0).sqrt()


def _in_blocks(structure: Structure) -> dict[int, Blocks]:
    """The channels that stand in blocks, whose clusters would have to be equal in all blocks."""
    return {
        channel: blocks
        for blocks in structure.labels.blocks
        for side in blocks.sides
        for channel in structure.group_of[side].flatten().tolist()
    }


def _unfolded(groups: list[ChannelGroup], blocks: dict[int, Blocks]) -> list[Kept]:
    found = [(group, blocks.get(int(group.ids[0]))) for group in groups]
    return [Kept(g.name, g.size, f"{b.layer or 'the network'} {b.reason}") for g, b in found if b is not None]


def _batch_norm_scales(surgery: Surgery, structure: Structure, cluster_of: Tensor) -> dict[str, Tensor]:
    """Fold-AR: the factor of each merged channel of every BatchNorm that follows a linear layer or convolution."""
    contractions = {contraction.node: contraction for contraction in structure.labels.contractions}
    names = structure.trace.names
    scales = {}
    for node in structure.trace.graph.nodes:
        if node.op != "call_function" or family(node) != "batch_norm" or node.args[0] not in contractions:
            continue
        weight, gamma, variance = (
            names.get(n) for n in (contractions[node.args[0]].weight, node.args[1], node.args[4])
        )
        if weight is None or gamma is None or variance is None or (gamma, 0) not in structure.labels.axes:
            continue
        matrix = membership(structure, structure.labels.axes[gamma, 0], cluster_of)
        if matrix.shape[0] < matrix.shape[1]:
            rows = oriented(node.args[0], surgery.tensor(weight).detach()).flatten(1).double().cpu()
            scale = (surgery.tensor(gamma) * torch.rsqrt(surgery.tensor(variance) + batch_norm_eps(node))).detach()
            scales[gamma] = fold_ar_scale(rows * scale.double().cpu()[:, None], matrix).to(scale)
    return scales


def fold_ar_scale(rows: Tensor, membership: Tensor) -> Tensor:
    """(clusters,) N / sqrt(N + (N^2 - N) E): 1 for identical rows, sqrt(N) for orthogonal ones.

    Args:
        rows: (channels, elements) rows of the layer, scaled by its BatchNorm.
        membership: (clusters, channels) 0/1.

    Source: Fold-AR of "Model Folding" (arXiv 2502.10216).
    """
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    size = membership.sum(1)
    pairs = (membership @ unit).square().sum(1) - (membership @ unit.square().sum(1, keepdim=True))[:, 0]
    return size / (size + pairs).clamp_min(1e-12 + 0 * size).sqrt().clamp_min(1e-6)
