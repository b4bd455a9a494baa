"""Merging channels: producers get the mean of their cluster, consumers the sum; queries are scaled for merged keys."""

import torch
from torch import Tensor

from lightning_fold.rewrites.channels.producers import effective_rows, find_producers
from lightning_fold.structure.constant_values import along
from lightning_fold.structure.groups import Structure, reading_axes
from lightning_fold.surgery.editor import Editor
from lightning_fold.surgery.optimizers import Transform


def combine(editor: Editor, structure: Structure, cluster_of: Tensor) -> None:
    """Write the mean of rows and the sum of columns of each cluster to its representative; sizes do not change."""
    reading = reading_axes(structure)
    contractions = structure.labels.contractions
    names = structure.trace.names
    grouped = {names[c.weight]: c for c in contractions if c.groups > 1 and c.columns is not None and c.weight in names}
    for (name, dim), axis in structure.labels.axes.items():
        target = targets(structure.groups(axis), cluster_of)
        if bool((target != torch.arange(axis.size)).any()) and not (name in grouped and dim == 1):
            mean = _gather(target, dim, mean=True)
            editor.transform(name, _gather(target, dim, mean=False) if (name, dim) in reading else mean, moments=mean)
    for name, contraction in grouped.items():
        assert contraction.columns is not None
        if editor.tensor(name).shape[1] > 1:
            target = targets(structure.group_of[contraction.columns], cluster_of)
            if bool((target != torch.arange(len(target))).any()):
                _combine_grouped(editor, name, target, contraction.groups)
    _make_up_for_keys(editor, structure, cluster_of)


def targets(groups: Tensor, cluster_of: Tensor) -> Tensor:
    """(size,) for each index of a dimension, the index that represents its cluster.

    A group with several indices (after a flatten) merges position by position with the other groups.

    Args:
        groups: (size,) the group of each index.
        cluster_of: (groups,) the group that represents each group's cluster.
    """
    seen: dict[int, int] = {}
    place: dict[tuple[int, int], int] = {}
    occurrence = []
    for index, group in enumerate(groups.tolist()):
        occurrence.append(seen.get(group, 0))
        seen[group] = occurrence[-1] + 1
        place[group, occurrence[-1]] = index
    pairs = zip(cluster_of[groups].tolist(), occurrence, strict=True)
    return torch.tensor([place.get(pair, index) for index, pair in enumerate(pairs)])


def _gather(target: Tensor, dim: int, *, mean: bool) -> Transform:
    def apply(tensor: Tensor) -> Tensor:
        index = target.to(tensor.device)
        total = torch.zeros_like(tensor).index_add(dim, index, tensor)
        count = torch.bincount(index, minlength=tensor.shape[dim]).clamp_min(1)
        return total / along(count.to(tensor), dim, tensor.shape) if mean else total

    return apply


def _combine_grouped(editor: Editor, name: str, target: Tensor, groups: int) -> None:
    weight = editor.tensor(name).detach()
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    inner = (target.reshape(groups, -1) - torch.arange(groups)[:, None] * blocks.shape[2]).to(weight.device)
    index = inner.reshape(groups, 1, -1, *[1] * (weight.dim() - 2)).expand_as(blocks)
    editor.set(name, torch.zeros_like(blocks).scatter_add(2, index, blocks).reshape(weight.shape))


def is_whole(groups: Tensor) -> bool:
    """Whether each head (last dimension of ``groups``) is a single group: heads merge only as a whole."""
    return groups.shape[-1] > 1 and bool((groups == groups[..., :1]).all())


def _make_up_for_keys(editor: Editor, structure: Structure, cluster_of: Tensor) -> None:
    """Scale merged queries: the sum over N products of queries and keys is N times the product of their means."""
    count = torch.bincount(cluster_of, minlength=structure.count).double()
    for product in structure.labels.products:
        writer = product.writer
        if writer is None or writer.rows is None or is_whole(structure.group_of[product.channels]):
            continue
        queries = torch.isin(writer.rows, product.channels)
        scale = torch.where(queries, count[structure.group_of[writer.rows]].clamp_min(1), 1.0)
        if bool((scale != 1).any()):
            for node in (writer.weight, writer.bias):
                if node is not None:
                    row_dim = 1 - writer.column_dim if node is writer.weight else 0
                    editor.scale(structure.trace.names[node], row_dim, scale)


def fold_ar(editor: Editor, structure: Structure, cluster_of: Tensor) -> dict[str, Tensor]:
    """Fold-AR: for each BatchNorm right after a merged layer, the factor of every channel that represents a cluster."""
    scales = {}
    for producer in find_producers(structure):
        if producer.norm is None or (producer.norm[0], 0) not in structure.labels.axes:
            continue
        target = targets(structure.groups(structure.labels.axes[producer.norm[0], 0]), cluster_of)
        matrix = torch.nn.functional.one_hot(target, len(target)).T.double()
        if bool((matrix.sum(1) > 1).any()):
            factor = fold_ar_scale(effective_rows(editor, producer)[0], matrix)
            scales[producer.norm[0]] = torch.where(matrix.sum(1) > 1, factor, 1.0)
    return scales


def fold_ar_scale(rows: Tensor, membership: Tensor) -> Tensor:
    """(clusters,) N / sqrt(N + (N^2 - N) E): 1 for identical rows, sqrt(N) for orthogonal ones.

    Args:
        rows: (channels, elements) rows of the layer, scaled by its BatchNorm.
        membership: (clusters, channels) zeros and ones.

    Source: Fold-AR of "Model Folding" (arXiv 2502.10216).
    """
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    size = membership.sum(1)
    pairs = (membership @ unit).square().sum(1) - (membership @ unit.square().sum(1, keepdim=True))[:, 0]
    return size / (size + pairs).clamp_min(1e-12 + 0 * size).sqrt().clamp_min(1e-6)
