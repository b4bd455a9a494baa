"""Removing channel groups so that every tensor remains rectangular; shared by all methods that remove channels."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Blocks, Product
from lightning_fold.surgery.editor import NetworkEditor


@dataclass
class Removal:
    """The groups to remove: ``removed`` is (groups,) boolean; ``reasons`` says why a group had to be kept after all."""

    removed: Tensor
    reasons: dict[int, str] = field(default_factory=dict)


def complete(structure: Structure, removed: Tensor, *, exact: bool = False) -> Removal:
    """Keep more of the groups in ``removed`` until every tensor is rectangular and none is empty.

    With ``exact``, channels that share statistics are removed together or not at all.
    """
    removal = Removal(removed.clone())
    changed = True
    while changed:
        changed = any(
            [_keep_one(structure, removal), *(_even(structure, b, removal, exact) for b in structure.labels.blocks)]
        )
    return removal


def remove(editor: NetworkEditor, structure: Structure, removal: Removal) -> None:
    """Cut the removed groups out of every tensor that contains them."""
    for product in structure.labels.products:
        _keep_scale(editor, structure, product, removal)
    names = structure.trace.names
    contractions = [c for c in structure.labels.contractions if c.weight in names and c.columns is not None]
    grouped = {names[c.weight]: c for c in contractions if c.groups > 1}
    for (name, dim), axis in structure.labels.axes.items():
        if name not in grouped:
            _select(editor, name, dim, _staying(removal, structure.groups(axis)))
    for name, contraction in grouped.items():
        assert contraction.columns is not None and contraction.rows is not None
        rows = _staying(removal, structure.group_of[contraction.rows])
        columns = _staying(removal, structure.group_of[contraction.columns])
        if len(columns) < len(contraction.columns) or len(rows) < len(contraction.rows):
            editor.select_grouped(name, rows, columns, contraction.groups)
    for blocks in structure.labels.blocks:
        if blocks.shared_statistics:
            staying = ~removal.removed[structure.group_of[blocks.sides[0]]]
            editor.set_attribute(blocks.layer, "num_groups", int(staying.any(1).sum()))
            editor.set_attribute(blocks.layer, "num_channels", int(staying.sum()))
    for size in structure.labels.sizes:
        staying = ~removal.removed[structure.group_of[size.labels]]
        value = size.value * _counted(staying, size.counts) // _counted(torch.ones_like(staying), size.counts)
        editor.set_attribute(size.layer, size.attribute, value)


def _counted(staying: Tensor, what: str) -> int:
    """The remaining channels, blocks or channels of a block; ``staying`` is (blocks, channels of a block)."""
    if what == "channels":
        return int(staying.sum())
    return int(staying.any(1).sum() if what == "blocks" else staying.sum(1).max())


def _keep_scale(editor: NetworkEditor, structure: Structure, product: Product, removal: Removal) -> None:
    """Scale the queries: attention divides by the square root of their number of channels, which shrinks."""
    labels, writer = product.channels, product.writer
    staying = ~removal.removed[structure.group_of[labels]].reshape(-1, labels.shape[-1])
    left = int(staying.sum(1).max())
    if writer is None or writer.rows is None or left == labels.shape[-1]:
        return
    queries = torch.isin(writer.rows, labels)
    scale = torch.where(queries, (left / labels.shape[-1]) ** 0.5, torch.ones((), dtype=torch.float64))
    for node in (writer.weight, writer.bias):
        if node is not None:
            row_dim = 1 - writer.column_dim if node is writer.weight else 0
            editor.scale(structure.trace.names[node], row_dim, scale)


def _staying(removal: Removal, groups: Tensor) -> Tensor:
    return torch.nonzero(~removal.removed[groups]).flatten()


def _select(editor: NetworkEditor, name: str, dim: int, keep: Tensor) -> None:
    if len(keep) < editor.tensor(name).shape[dim]:
        editor.select(name, dim, keep)


def _keep_one(structure: Structure, removal: Removal) -> bool:
    changed = False
    for axis in structure.labels.axes.values():
        groups = structure.groups(axis)
        if bool(removal.removed[groups].all()):
            _take_back(removal, int(groups[0]), "is the last channel of its layer")
            changed = True
    return changed


def _even(structure: Structure, blocks: Blocks, removal: Removal, exact: bool) -> bool:
    """Keep more groups until remaining blocks have equal sizes per side; blocks are removed on all sides or on none."""
    sides = [structure.group_of[side] for side in blocks.sides]
    before = int(removal.removed.sum())
    for _ in range(max(side.shape[1] for side in sides) + 1):
        kept = torch.stack([(~removal.removed[side]).sum(1) for side in sides])
        staying = kept.any(0) | blocks.fixed_count
        goal = kept.max(1).values
        if blocks.fixed_size or (blocks.shared_statistics and exact):
            goal = goal.clamp_min(sides[0].shape[1] if bool(staying.any()) else 0)
        if bool((kept[:, staying] == goal[:, None]).all()):
            break
        for side, have, want in zip(sides, kept, goal.tolist(), strict=True):
            for block in torch.nonzero(staying & (have < want)).flatten().tolist():
                lost = [g for g in side[block].tolist() if removal.removed[g]]
                short = want - (side.shape[1] - len(lost))  # groups that another block took back count here too
                for group in lost[: max(short, 0)]:
                    _take_back(removal, group, blocks.reason)
    return int(removal.removed.sum()) != before


def _take_back(removal: Removal, group: int, reason: str) -> None:
    removal.removed[group] = False
    removal.reasons[group] = reason
