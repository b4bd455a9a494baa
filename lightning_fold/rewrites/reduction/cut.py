"""The cut of prune and fold: which channels are merged and which are removed, and how it is carried out."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_fold.rewrites.channels.compensated_norms import compensable, weigh
from lightning_fold.rewrites.channels.merge import combine, fold_ar, targets
from lightning_fold.rewrites.channels.removal import Removal, complete, remove
from lightning_fold.rewrites.channels.rescaling import Rescaling, rescaling, widen
from lightning_fold.rewrites.channels.widths import PrunableGroup
from lightning_fold.rewrites.reduction.selector import ChannelSelector
from lightning_fold.structure.groups import Structure, reading_axes
from lightning_fold.surgery.editor import Editor, NetworkEditor


@dataclass(frozen=True)
class Cut:
    """The merging and removal of channels of a network.

    Attributes:
        structure: the structure of the network.
        cluster_of: (groups,) the group that represents each group's cluster, one of its members.
        removal: the groups to remove; the remaining ones hold the means and sums of their clusters.
        rescaling: applied first, so that channels that differ by a positive factor become identical; it does not change
            the function.
    """

    structure: Structure
    cluster_of: Tensor
    removal: Removal
    rescaling: Rescaling

    def apply(self, editor: NetworkEditor) -> None:
        """Merge and remove channels in a rescaled network; norms still count every merged channel."""
        narrowing = fold_ar(editor, self.structure, self.cluster_of)
        combine(editor, self.structure, self.cluster_of)
        remove(editor, self.structure, self.removal)
        for producer, spread in self.rescaling.spreads():
            assert producer.contraction.rows is not None and producer.norm is not None
            groups = self.structure.group_of[producer.contraction.rows]
            found = self.means(groups) @ spread
            if producer.norm[0] in narrowing:
                found = found / narrowing[producer.norm[0]][self.staying(groups)]
            widen(editor, producer, found)
        for norm in self.structure.labels.norms:
            if compensable(self.structure, norm):
                weigh(editor, self.structure, norm, self.cluster_of, self.removal)

    def staying(self, groups: Tensor) -> Tensor:
        """(left,) the remaining positions of a dimension with these groups."""
        return torch.nonzero(~self.removal.removed[groups]).flatten()

    def means(self, groups: Tensor) -> Tensor:
        """(left, channels) the matrix that averages over the clusters of a dimension with these groups."""
        matrix = (targets(groups, self.cluster_of)[None] == self.staying(groups)[:, None]).double()
        return matrix / matrix.sum(1, keepdim=True)


def plan_cut(
    editor: Editor,
    structure: Structure,
    selector: ChannelSelector,
    widths: Iterable[PrunableGroup],
    assignments: Iterable[Tensor],
) -> Cut:
    """The cut that gives each width its assignment, as far as all tensors remain rectangular.

    Args:
        editor: editor of the network, to read its weights and BatchNorms.
        structure: the structure of the network.
        selector: gives the divisors of merged channels.
        widths: the widths that shrink.
        assignments: for each width, (channels,) the cluster of each channel, or -1 to remove it.
    """
    each, scales = torch.arange(structure.count), torch.ones(structure.count, dtype=torch.float64)
    cluster_of, removed = each.clone(), torch.zeros(structure.count, dtype=torch.bool)
    for width, assignment in zip(widths, assignments, strict=True):
        ids, labels = width.group.ids, assignment.tolist()
        first = {label: position for position, label in reversed(list(enumerate(labels)))}
        cluster_of[ids] = ids[torch.tensor([first[label] if label >= 0 else i for i, label in enumerate(labels)])]
        removed[ids[assignment < 0]] = True
        scales[ids] = selector.scales(width)
    return _completed(editor, structure, cluster_of, removed, scales)


def merge(editor: NetworkEditor, structure: Structure, cluster_of: Tensor) -> None:
    """Merge channels; ``cluster_of`` (groups,) is the group that represents each group's cluster."""
    nothing, ones = torch.zeros(structure.count, dtype=torch.bool), torch.ones(structure.count, dtype=torch.float64)
    cut = _completed(editor, structure, cluster_of, nothing, ones)
    cut.rescaling.apply(editor)
    cut.apply(editor)


def _completed(editor: Editor, structure: Structure, cluster_of: Tensor, removed: Tensor, scales: Tensor) -> Cut:
    """The cut; channels that cannot be removed form their own clusters."""
    each = torch.arange(structure.count)
    removal = complete(structure, removed | (cluster_of != each))
    cluster_of = torch.where(removal.removed, cluster_of, each)
    merged = torch.bincount(cluster_of, minlength=structure.count)[cluster_of] > 1
    return Cut(structure, cluster_of, removal, rescaling(editor, structure, merged, scales, reading_axes(structure)))
