"""The widths of a network that prune and fold can shrink."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import Kept
from lightning_fold.rewrites.transaction import check_finite
from lightning_fold.structure.groups import ChannelGroup, Structure, group_channels, read_structure


@dataclass(frozen=True)
class PrunableGroup:
    """A channel group, in blocks that must all keep the same number of channels.

    Attributes:
        group: its channels.
        blocks: positions in the group: a single block, or one per attention head or convolution group.
    """

    group: ChannelGroup
    blocks: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """The number of channels in the smallest block."""
        return min(len(block) for block in self.blocks)

    def kept_in(self, block: Tensor, kept: int) -> int:
        """The channels that ``block`` keeps if the smallest keeps ``kept``: in proportion, so that sums agree."""
        return max(round(kept * len(block) / self.size), 1)

    @property
    def layers(self) -> list[str]:
        """Dotted names of the layers that write or read the channels."""
        return [member.tensor.rpartition(".")[0] for member in self.group.members]

    @property
    def writers(self) -> list[str]:
        """Dotted names of the layers that write the channels; their share applies to this width."""
        found = [member.tensor.rpartition(".")[0] for member in self.group.members if not member.reads]
        return found or self.layers

    def skipped(self, patterns: Sequence[str]) -> str | None:
        """Which of ``patterns`` excludes this width, and for which layer; ``None`` if it may shrink."""
        found = ((layer, pattern) for layer in self.layers for pattern in patterns if fnmatchcase(layer, pattern))
        return next((f"skip={pattern!r} excludes the channels of {layer}" for layer, pattern in found), None)


def find_prunable_groups(
    method: str, model: nn.Module, example_inputs: Inputs, *, ask_attributes: bool = True
) -> tuple[Structure, list[PrunableGroup]]:
    """The structure of ``model`` and the widths that can shrink.

    Raises:
        ArgumentError: no width can shrink, or a weight is NaN or infinite.
    """
    check_finite(method, model)
    structure = read_structure(model, example_inputs, ask_attributes=ask_attributes, whole_heads=True)
    block_of = _block_of(structure)
    widths = [
        width
        for group in group_channels(structure)
        if group.pinned is None and (width := _width(group, block_of)).size > 1
    ]
    if not widths:
        raise ArgumentError(
            f"{method}({type(model).__name__}): expected a network with at least one hidden width between two layers; "
            "every channel is fixed by the inputs, the outputs or an operator without a rule, or is the only one of "
            "its width."
        )
    return structure, widths


def check_patterns(method: str, widths: Sequence[PrunableGroup], patterns: Sequence[str]) -> None:
    """Raise ``ArgumentError`` if one of ``patterns`` matches no width, or together they exclude every width."""
    for pattern in patterns:
        if not any(width.skipped([pattern]) for width in widths):
            raise ArgumentError(
                f"{method}(skip=[{pattern!r}]): expected a glob pattern that matches the dotted name of a layer whose "
                f"width can shrink, for example {widths[0].group.name.rpartition('.')[0]!r}."
            )
    if all(width.skipped(patterns) for width in widths):
        raise ArgumentError(f"{method}(skip={list(patterns)}): expected patterns that exclude some widths, not all.")


def find_bundles(structure: Structure, widths: list[PrunableGroup]) -> list[list[int]]:
    """Positions of widths that must keep the same number of channels, as attention queries and values cut as one."""
    width_of = torch.full((structure.count,), -1)
    for i, width in enumerate(widths):
        width_of[width.group.ids] = i
    leader = list(range(len(widths)))
    for blocks in structure.labels.blocks:
        for side in blocks.sides:
            found = {leader[i] for i in width_of[structure.group_of[side]].flatten().unique().tolist() if i >= 0}
            if len({widths[i].size for i in found}) == 1:
                leader = [min(found) if i in found else i for i in leader]
    return [[i for i, head in enumerate(leader) if head == first] for first in dict.fromkeys(leader)]


def hold_bundles(
    structure: Structure, widths: list[PrunableGroup], reasons: list[str | None]
) -> tuple[list[tuple[PrunableGroup, str]], list[PrunableGroup]]:
    """The widths that must not shrink, with the reason, and those that may.

    Args:
        structure: the structure of the network.
        widths: its widths.
        reasons: for each width, why it must not shrink, or ``None``. A width tied in size to one that must not shrink,
            or to channels of no width, must not shrink either.
    """
    width_of = torch.full((structure.count,), -1)
    for i, width in enumerate(widths):
        width_of[width.group.ids] = i
    found = list(reasons)
    sides = [width_of[structure.group_of[side]] for b in structure.labels.blocks for side in b.sides]
    while True:
        staying = torch.tensor([reason is not None for reason in found] + [True])  # last: channels of no width
        held = [side for side in sides if side.shape[1] > 1 and bool(staying[side].all(1).any())]
        new = {i for side in held for i in side.unique().tolist() if not staying[i]}
        if not new:
            break
        for i in new:
            found[i] = "must keep as many channels as others that are cut in the same way, and these are fixed"
    answers = list(zip(widths, found, strict=True))
    return [(w, r) for w, r in answers if r is not None], [w for w, r in answers if r is None]


def kept_groups(structure: Structure) -> list[Kept]:
    """The groups that an operator without a rule fixes."""
    if not any(pin is not None and "has no rule" in pin.reason for pin in structure.pinned.values()):
        return []
    return [
        Kept(group.name, group.size, group.pinned)
        for group in group_channels(structure)
        if group.pinned is not None and "has no rule" in group.pinned
    ]


def pinned_groups(structure: Structure) -> list[Kept]:
    """Every hidden width that cannot shrink, and why; without the network's own inputs and outputs."""
    return [
        Kept(group.name, group.size, group.pinned)
        for group in group_channels(structure)
        if group.pinned is not None
        and not group.pinned.endswith(("is an output of the network", "reads an input of fixed size"))
    ]


def _block_of(structure: Structure) -> dict[int, tuple[int, ...]]:
    """For every channel that is part of blocks: the block, for each way in which the channels are cut."""
    found: dict[int, dict[int, int]] = {}
    sides = [side for c in structure.labels.contractions if c.groups > 1 for side in (c.rows, c.columns)]
    grouped = torch.cat([torch.zeros(0, dtype=torch.int64), *(side.flatten() for side in sides if side is not None)])
    for cut, blocks in enumerate(structure.labels.blocks):
        first = structure.group_of[blocks.sides[0][:, :1]]
        whole = all(bool((structure.group_of[side] == first).all()) for side in blocks.sides)
        by_itself = not (
            blocks.fixed_count or blocks.shared_statistics or bool(torch.isin(blocks.sides[0], grouped).any())
        )
        if whole and by_itself:
            continue  # each block is one group, a whole head, that can be removed by itself
        for side in blocks.sides:
            groups = structure.group_of[side]
            if all(torch.equal(row, groups[0]) for row in groups):
                continue  # every block has the same channels, as a gate and its input do
            for block, row in enumerate(groups.tolist()):
                for channel in row:
                    found.setdefault(channel, {}).setdefault(cut, block)
    return {channel: tuple(v for _, v in sorted(cuts.items())) for channel, cuts in found.items()}


def _width(group: ChannelGroup, block_of: dict[int, tuple[int, ...]]) -> PrunableGroup:
    cells: dict[tuple[int, ...], list[int]] = {}
    for position, channel in enumerate(group.ids.tolist()):
        cells.setdefault(block_of.get(channel, ()), []).append(position)
    return PrunableGroup(group, tuple(torch.tensor(cell) for cell in cells.values()))
