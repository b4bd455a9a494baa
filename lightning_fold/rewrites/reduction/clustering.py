"""k-means clusters of the channels of a width."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor, nn

from lightning_fold.rewrites.channels.homogeneity import homogeneous
from lightning_fold.rewrites.channels.producers import Producer, effective_rows, find_producers
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.importances.importance import channel_rows
from lightning_fold.structure.groups import Member, Structure
from lightning_fold.surgery.editor import NetworkEditor

_STARTS: Any = 3  # scikit-learn annotates the argument as a string
_SAME = 1e-6  # distance up to which rows are equal, relative to the largest
_TINY = torch.finfo(torch.float64).tiny
_LEAST = 1e-6  # smallest weight, relative to the mean
_ELEMENTS = 1024  # more, with more points than this, take minutes
_PRODUCTS = 2**28  # points x clusters x elements: above this, k-means++ takes minutes


class Clustering:
    """Clusters of any size for the channels of any width of one network.

    A channel is described by the rows that write it (with bias and BatchNorm as one affine map) and the direction of
    the columns that read it; all tensors have the same weight. If a positive factor passes from writers to readers, as
    through ReLU, rows are normalized to length 1.

    With rows a, columns b and their cluster means a', b', merging changes the outputs of the readers by at most the
    sum of |a - a'| |b - b'|, which is at most half the sum of |a| |b| (|a - a'|^2 / |a|^2 + |b - b'|^2 / |b|^2). So a
    channel has weight |a| |b| in k-means, and weak channels do not take clusters from strong ones. If a = a' for all,
    merging is exact for any b: channels with identical rows are one point before k-means starts.

    Args:
        model: the network.
        structure: the structure of the network.
        seed: seed of k-means.
    """

    def __init__(self, model: nn.Module, structure: Structure, seed: int) -> None:
        self.editor, self.structure, self.seed = NetworkEditor(model), structure, seed
        self._producers = {producer.weight: producer for producer in find_producers(structure)}
        self._homogeneous = homogeneous(structure)
        self._lengths: dict[int, Tensor] = {}
        self._points: dict[int, list[_Points]] = {}

    def scales(self, width: PrunableGroup) -> Tensor:
        """(channels,) the norm of all rows that write each channel; 1 if channels cannot be scaled."""
        key = int(width.group.ids[0])
        if key not in self._lengths:
            self._lengths[key] = self._length(width)
        return self._lengths[key]

    def _length(self, width: PrunableGroup) -> Tensor:
        group = width.group
        parts = self._written(width)
        length = torch.cat(parts, dim=1).norm(dim=1) if parts else torch.zeros(group.size, dtype=torch.float64)
        scaled = bool(self._homogeneous[group.ids].all()) and bool((length > 0).all())
        return length if scaled else torch.ones(group.size, dtype=torch.float64)

    def assign(self, width: PrunableGroup, clusters: int) -> Tensor:
        """(channels,) the cluster of each channel, ``clusters`` in each block (fewer if channels are identical).

        The best of a few starts of k-means++; if these would take too long, one start from the clusters of a Ward tree.
        """
        from sklearn.cluster import KMeans  # slow to import (a second), and only fold needs it

        def k_means(points: _Points, wanted: int) -> np.ndarray:
            weights = points.weights.numpy()
            start: dict[str, Any] = {"n_init": _STARTS, "random_state": self.seed}
            if points.coordinates.size * wanted > _PRODUCTS:
                centers = points.centers(wanted)
                wanted, start = len(centers), {"n_init": 1, "init": centers}
            means = KMeans(wanted, **start)
            return means.fit_predict(points.coordinates, sample_weight=weights)

        return self._in_blocks(width, clusters, k_means)

    def approximate(self, width: PrunableGroup, clusters: int) -> Tensor:
        """Similar clusters from a Ward tree, which is built once for all sizes."""
        return self._in_blocks(width, clusters, _Points.cut)

    def _in_blocks(self, width: PrunableGroup, clusters: int, find: Callable[["_Points", int], np.ndarray]) -> Tensor:
        key = int(width.group.ids[0])
        if key not in self._points:
            written, read = self._describe(width)
            self._points[key] = [_gather(written[block], read[block], self.seed) for block in width.blocks]
        assignment = torch.full((width.group.size,), -1)
        for block, points in zip(width.blocks, self._points[key], strict=True):
            wanted = width.kept_in(block, clusters)
            labels = find(points, wanted)[points.place] if wanted < len(points.weights) else points.split(wanted)
            found = torch.from_numpy(np.unique(labels, return_inverse=True)[1]).long()
            assignment[block] = found + int(assignment.max()) + 1
        return assignment

    def _describe(self, width: PrunableGroup) -> tuple[Tensor, Tensor]:
        """Two (channels, elements) descriptions: the rows that write each channel, and the columns that read it."""
        scales = self.scales(width)[:, None]
        unknown = torch.eye(width.group.size, dtype=torch.float64)  # no evidence that any two channels are equal
        written = _alike([part / scales for part in self._written(width)] or [unknown], width.group.size)
        return written, _alike([self._rows(m) * scales for m in width.group.members if m.reads], width.group.size)

    def _written(self, width: PrunableGroup) -> list[Tensor]:
        """The rows that write the channels; a layer and its BatchNorm count as one affine map."""
        members = [member for member in width.group.members if not member.reads]
        producers = [self._producers[m.tensor] for m in members if m.tensor in self._producers]
        joined = {name for producer in producers for name in producer.tensors}
        parts = [self._affine(m, self._producers[m.tensor]) for m in members if m.tensor in self._producers]
        return parts + [self._rows(member) for member in members if member.tensor not in joined]

    def _affine(self, member: Member, producer: Producer) -> Tensor:
        rows, bias = effective_rows(self.editor, producer)
        return torch.cat([rows, bias[:, None]], dim=1)[member.indices].flatten(1)

    def _rows(self, member: Member) -> Tensor:
        return channel_rows(self.editor.model, member).double().cpu()


@dataclass(frozen=True)
class _Points:
    """The channels of a block as points; channels with identical rows are one point.

    Attributes:
        features: (points, elements) the coordinates to compare.
        weights: (points,) the weight of each point.
        place: (channels,) the point of each channel.
        distinct: number of channels that differ in rows or columns.
    """

    features: Tensor
    weights: Tensor
    place: np.ndarray
    distinct: int

    @cached_property
    def coordinates(self) -> np.ndarray:
        """The points with the same distances, in no more dimensions than there are points."""
        if self.features.shape[1] <= self.features.shape[0]:
            return self.features.numpy()
        energies, directions = torch.linalg.eigh(self.features @ self.features.T)
        return (directions * energies.clamp_min(0).sqrt()).numpy()

    @cached_property
    def tree(self) -> np.ndarray:
        """The Ward tree of the points scaled by the square roots of their weights."""
        return _ward(self.features * self.weights.sqrt()[:, None])

    def split(self, clusters: int) -> np.ndarray:
        """(channels,) the cluster of each channel: its point, with some channels split off to reach ``clusters``.

        Merging within a point is exact, but is only done as far as needed. There are never more clusters than distinct
        channels.
        """
        others = np.setdiff1d(np.arange(len(self.place)), np.unique(self.place, return_index=True)[1])
        alone = others[: max(min(clusters, self.distinct) - len(self.weights), 0)]
        labels = self.place.copy()
        labels[alone] = len(self.weights) + np.arange(len(alone))
        return labels

    def cut(self, clusters: int) -> np.ndarray:
        """(points,) the cluster of each point, from 0."""
        if len(self.features) == 1:
            return np.zeros(1, dtype=np.int64)
        return np.unique(fcluster(self.tree, clusters, "maxclust"), return_inverse=True)[1]

    def centers(self, clusters: int) -> np.ndarray:
        """(clusters, elements) the weighted cluster means of :meth:`cut` in the coordinates."""
        labels, weights = self.cut(clusters), self.weights.numpy()
        total = np.zeros((labels.max() + 1, self.coordinates.shape[1]))
        np.add.at(total, labels, self.coordinates * weights[:, None])
        return total / np.bincount(labels, weights)[:, None]


def _gather(written: Tensor, read: Tensor, seed: int) -> _Points:
    """The points of channels, given the (channels, elements) rows that write them and columns that read them."""
    place = _twins(_few_elements(written, seed))
    count, first = np.unique(place, return_index=True)
    summed = torch.zeros(len(count), read.shape[1], dtype=read.dtype).index_add(0, torch.from_numpy(place).long(), read)
    features, weights = _features(written[first], summed)
    distinct = len(count)
    if distinct < len(place):
        distinct = len(np.unique(_twins(_few_elements(_features(written, read)[0], seed))))
    return _Points(_few_elements(features, seed), weights, place, distinct)


def _features(written: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """The features (channels, elements) and weights (channels,) of channels."""
    strength = written.norm(dim=1) * read.norm(dim=1)
    features = torch.cat([written, read / read.norm(dim=1, keepdim=True).clamp_min(_TINY)], dim=1)
    return features, (strength / strength.mean().clamp_min(_TINY)).clamp_min(_LEAST)


def _twins(rows: Tensor) -> np.ndarray:
    """(channels,) a number from 0 for each distinct row; rows equal up to rounding have the same number."""
    if len(rows) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = _ward(rows - rows.mean(0))
    return np.unique(fcluster(tree, _SAME * tree[:, 2].max(), "distance"), return_inverse=True)[1]


def _alike(parts: list[Tensor], size: int) -> Tensor:
    """Parts (size, ...) side by side, scaled to equal energy; the root mean square norm of a row is 1."""
    if not parts:
        return torch.ones(size, 1, dtype=torch.float64)
    joined = torch.cat([part / part.norm().clamp_min(_TINY) for part in parts], dim=1)
    return joined * (size / len(parts)) ** 0.5


def _ward(features: Tensor) -> np.ndarray:
    """The tree of Ward's criterion: each step merges where the k-means objective grows least."""
    products = features @ features.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares - 2 * products).clamp_min(0).sqrt().numpy()
    return linkage(distances[np.triu_indices(len(distances), 1)], "ward")


def _few_elements(features: Tensor, seed: int) -> Tensor:
    """Points with few enough elements for cheap distances.

    If there are more than _ELEMENTS points and elements, the points are projected on _ELEMENTS random directions: this
    changes squared distances by about 4 %, and identical points remain identical.
    """
    if min(features.shape) <= _ELEMENTS:
        return features
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features.shape[1], _ELEMENTS, generator=generator)
    return (features.float() @ directions).double() / _ELEMENTS**0.5
