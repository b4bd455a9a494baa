"""k-means clusters of the channels of a width."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from torch import Tensor

from lightning_fold.rewrites.batch_norms import Producer, effective_rows, find_producers, homogeneous
from lightning_fold.rewrites.importance import channel_rows
from lightning_fold.rewrites.widths import Width
from lightning_fold.structure.groups import Member, Structure
from lightning_fold.surgery import Surgery

_STARTS: Any = 3  # scikit-learn annotates it as a string
_SAME = 1e-6  # of the largest distance
_ELEMENTS = 1024  # more, for more points than that, cost minutes
_PRODUCTS = 2**28  # of points, clusters and elements: k-means++ with more costs minutes


class Clustering:
    """Clusters of any size for the channels of any width of one network.

    A channel is described by the rows that write it (with bias and BatchNorm as one affine map) and the columns that
    read it; each tensor weighs the same. Where a positive factor passes from writers to readers, as through ReLU,
    channels are compared at length 1.

    Args:
        surgery: the network.
        structure: what was read from it.
        seed: seed of k-means.
    """

    def __init__(self, surgery: Surgery, structure: Structure, seed: int) -> None:
        self.surgery, self.structure, self.seed = surgery, structure, seed
        self._producers = {producer.weight: producer for producer in find_producers(structure)}
        self._homogeneous = homogeneous(structure)
        self._lengths: dict[int, Tensor] = {}
        self._points: dict[int, list[_Points]] = {}

    def lengths(self, width: Width) -> Tensor:
        """(channels,) the length of everything that writes each channel; 1 where channels cannot be scaled."""
        key = int(width.group.ids[0])
        if key not in self._lengths:
            self._lengths[key] = self._length(width)
        return self._lengths[key]

    def _length(self, width: Width) -> Tensor:
        group = width.group
        parts = self._written(width)
        length = torch.cat(parts, dim=1).norm(dim=1) if parts else torch.zeros(group.size, dtype=torch.float64)
        scaled = bool(self._homogeneous[group.ids].all()) and bool((length > 0).all())
        return length if scaled else torch.ones(group.size, dtype=torch.float64)

    def assign(self, width: Width, clusters: int) -> Tensor:
        """(channels,) the cluster of each channel, ``clusters`` in each block (fewer where channels are identical).

        The best of a few starts of k-means++; where those cost too much, from the clusters of a Ward tree.
        """

        def k_means(points: _Points, wanted: int) -> np.ndarray:
            wanted = min(wanted, points.distinct)
            if points.coordinates.size * wanted <= _PRODUCTS:
                return KMeans(wanted, n_init=_STARTS, random_state=self.seed).fit_predict(points.coordinates)
            centers = points.centers(wanted)
            return KMeans(len(centers), init=centers, n_init=1).fit_predict(points.coordinates)

        return self._in_blocks(width, clusters, k_means)

    def sketch(self, width: Width, clusters: int) -> Tensor:
        """The same from a Ward tree, which is grown once for all sizes."""
        return self._in_blocks(width, clusters, _Points.cut)

    def _in_blocks(self, width: Width, clusters: int, find: Callable[["_Points", int], np.ndarray]) -> Tensor:
        key = int(width.group.ids[0])
        if key not in self._points:
            features = self._describe(width)
            self._points[key] = [_Points(_few_elements(features[block], self.seed)) for block in width.blocks]
        assignment = torch.full((width.group.size,), -1)
        for block, points in zip(width.blocks, self._points[key], strict=True):
            found = torch.from_numpy(find(points, width.kept_in(block, clusters))).long()
            assignment[block] = found + int(assignment.max()) + 1
        return assignment

    def _describe(self, width: Width) -> Tensor:
        lengths = self.lengths(width)[:, None]
        read = [self._rows(member) * lengths for member in width.group.members if member.reads]
        parts = [part / lengths for part in self._written(width)] + read
        return torch.cat([part / part.norm().clamp_min(torch.finfo(part.dtype).tiny) for part in parts], dim=1)

    def _written(self, width: Width) -> list[Tensor]:
        """What writes the channels: layers with their BatchNorm as one, everything else as it is."""
        members = [member for member in width.group.members if not member.reads]
        producers = [self._producers[m.tensor] for m in members if m.tensor in self._producers]
        joined = {name for producer in producers for name in producer.tensors}
        parts = [self._affine(m, self._producers[m.tensor]) for m in members if m.tensor in self._producers]
        return parts + [self._rows(member) for member in members if member.tensor not in joined]

    def _affine(self, member: Member, producer: Producer) -> Tensor:
        rows, bias = effective_rows(self.surgery, producer)
        return torch.cat([rows, bias[:, None]], dim=1)[member.indices].flatten(1)

    def _rows(self, member: Member) -> Tensor:
        return channel_rows(self.surgery.model, member).double().cpu()


@dataclass(frozen=True)
class _Points:
    """The channels of a block as points, (channels, elements)."""

    features: Tensor

    @cached_property
    def coordinates(self) -> np.ndarray:
        """The same points with the same distances in at most as many dimensions as there are points."""
        if self.features.shape[1] <= self.features.shape[0]:
            return self.features.numpy()
        energies, directions = torch.linalg.eigh(self.features @ self.features.T)
        return (directions * energies.clamp_min(0).sqrt()).numpy()

    @cached_property
    def distinct(self) -> int:
        """How many are not the same, up to rounding."""
        if len(self.features) == 1:
            return 1
        heights = self.tree[:, 2]
        return 1 + int((heights > _SAME * heights.max()).sum())

    @cached_property
    def tree(self) -> np.ndarray:
        """Which join first by Ward's criterion, the growth of what k-means makes small."""
        products = self.features @ self.features.T
        squares = products.diagonal()
        distances = (squares[:, None] + squares - 2 * products).clamp_min(0).sqrt().numpy()
        return linkage(distances[np.triu_indices(len(distances), 1)], "ward")

    def cut(self, clusters: int) -> np.ndarray:
        """(channels,) the cluster of each, from 0."""
        if len(self.features) == 1:
            return np.zeros(1, dtype=np.int64)
        return np.unique(fcluster(self.tree, clusters, "maxclust"), return_inverse=True)[1]

    def centers(self, clusters: int) -> np.ndarray:
        """(clusters, elements) the means of :meth:`cut` in the coordinates."""
        labels = self.cut(clusters)
        total = np.zeros((labels.max() + 1, self.coordinates.shape[1]))
        np.add.at(total, labels, self.coordinates)
        return total / np.bincount(labels)[:, None]


def _few_elements(features: Tensor, seed: int) -> Tensor:
    """Points of so many elements that distances between so many of them are cheap.

    Where there are more than _ELEMENTS of both, what lies along as many random directions: squared distances are kept
    to within some 4 %, and points that are the same stay the same.
    """
    if min(features.shape) <= _ELEMENTS:
        return features
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features.shape[1], _ELEMENTS, generator=generator)
    return (features.float() @ directions).double() / _ELEMENTS**0.5
