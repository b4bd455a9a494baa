"""The widths of a network that prune and fold may shrink, and what they cost at every size."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_fold.report import Kept
from lightning_fold.structure.groups import ChannelGroup, Structure, group_channels, read_structure
from lightning_fold.structure.trace import Inputs


@dataclass(frozen=True)
class Width:
    """A channel group, in blocks that must keep equally many channels each.

    Attributes:
        group: its channels.
        blocks: positions in the group: one block, or one for each attention head or group of a convolution.
    """

    group: ChannelGroup
    blocks: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Channels in a block, of the smallest where they differ."""
        return min(len(block) for block in self.blocks)

    def kept_in(self, block: Tensor, kept: int) -> int:
        """The channels that ``block`` keeps where the smallest keeps ``kept``: in proportion, so that sums agree."""
        return max(round(kept * len(block) / self.size), 1)


def find_widths(
    method: str, model: nn.Module, example_inputs: Inputs, *, ask_attributes: bool = True
) -> tuple[Structure, list[Width]]:
    """The structure of ``model`` and the widths that can shrink.

    Raises:
        ValueError: no width can shrink, or a weight is NaN or infinite.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{method}({type(model).__name__}): {name} holds NaN or infinity; expected finite weights. "
                "Load the last good checkpoint."
            )
    structure = read_structure(model, example_inputs, ask_attributes=ask_attributes)
    block_of = _block_of(structure)
    widths = [
        width
        for group in group_channels(structure)
        if group.pinned is None and (width := _width(group, block_of)).size > 1
    ]
    if not widths:
        raise ValueError(
            f"{method}({type(model).__name__}): expected a network with at least one hidden width of channels between "
            "two layers; every channel is fixed by the inputs, the outputs or an operator without a rule."
        )
    return structure, widths


def find_bundles(structure: Structure, widths: list[Width]) -> list[list[int]]:
    """Widths that must keep equally many channels, as the queries and the values of attention that are cut as one."""
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


def kept_groups(structure: Structure) -> list[Kept]:
    """The groups that an operator without a rule holds fast."""
    if not any(pin is not None and "has no rule" in pin.reason for pin in structure.pinned.values()):
        return []
    return [
        Kept(group.name, group.size, group.pinned)
        for group in group_channels(structure)
        if group.pinned is not None and "has no rule" in group.pinned
    ]


def pinned_widths(structure: Structure) -> list[Kept]:
    """Every hidden width that stays as it is, and why; not the network's own inputs and outputs."""
    return [
        Kept(group.name, group.size, group.pinned)
        for group in group_channels(structure)
        if group.pinned is not None
        and not group.pinned.endswith(("is an output of the network", "reads an input of fixed size"))
    ]


def _block_of(structure: Structure) -> dict[int, tuple[int, ...]]:
    """For every channel that stands in blocks: which one, in each of the ways in which it is cut."""
    found: dict[int, dict[int, int]] = {}
    for cut, blocks in enumerate(structure.labels.blocks):
        for side in blocks.sides:
            groups = structure.group_of[side]
            if all(torch.equal(row, groups[0]) for row in groups):
                continue  # every block holds the same channels, as a gate and what it gates do
            for block, row in enumerate(groups.tolist()):
                for channel in row:
                    found.setdefault(channel, {}).setdefault(cut, block)
    return {channel: tuple(v for _, v in sorted(cuts.items())) for channel, cuts in found.items()}


def _width(group: ChannelGroup, block_of: dict[int, tuple[int, ...]]) -> Width:
    cells: dict[tuple[int, ...], list[int]] = {}
    for position, channel in enumerate(group.ids.tolist()):
        cells.setdefault(block_of.get(channel, ()), []).append(position)
    return Width(group, tuple(torch.tensor(cell) for cell in cells.values()))


class CostModel:
    """Parameters or FLOPs of a network as a function of how many channels each width keeps.

    Args:
        model: the network.
        structure: what was read from it.
        widths: its widths.
        total: the whole cost at full size, counted apart.
        flops: whether the cost is FLOPs of one forward pass, and not parameters.
    """

    def __init__(self, model: nn.Module, structure: Structure, widths: list[Width], total: int, *, flops: bool) -> None:
        self.structure, self.widths, self.total = structure, widths, total
        self.bundles = find_bundles(structure, widths)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._price = _flops_per_weight(structure) if flops else dict.fromkeys(self._shapes, 1)

    @cached_property
    def _dims(self) -> dict[str, list[Tensor]]:
        """For each parameter the channels along each dimension that has any."""
        dims: dict[str, list[Tensor]] = {name: [] for name in self._shapes}
        contractions = self.structure.labels.contractions
        grouped = {self.structure.trace.names.get(c.weight): c for c in contractions if c.groups > 1}
        for (name, dim), axis in self.structure.labels.axes.items():
            if name in dims and not (dim == 1 and name in grouped):
                dims[name].append(self.structure.groups(axis))
        for name, contraction in grouped.items():
            if name in dims and contraction.columns is not None and self._shapes[name][1] > 1:
                dims[name].append(self.structure.group_of[contraction.columns])
        return dims

    @cached_property
    def _counts(self) -> dict[str, list[tuple[int, Counter[int]]]]:
        """For each parameter and dimension: how many channels are of no width, and how many of each."""
        width_of = torch.full((self.structure.count,), -1)
        for i, width in enumerate(self.widths):
            width_of[width.group.ids] = i
        found = {}
        for name, dims in self._dims.items():
            counters = [Counter(width_of[groups].tolist()) for groups in dims]
            found[name] = [(counter.pop(-1, 0), counter) for counter in counters]
        return found

    @cached_property
    def tensors_of(self) -> list[list[str]]:
        """For each width the parameters that shrink with it."""
        return [
            [name for name, dims in self._counts.items() if any(i in counter for _, counter in dims)]
            for i in range(len(self.widths))
        ]

    def tensor_cost(self, name: str, kept: list[int]) -> float:
        """Cost of one parameter when each width keeps ``kept`` channels in each block."""
        price = float(self._price.get(name, 0))
        for size, groups in zip(self._counts[name], self._dims[name], strict=True):
            fixed, counter = size
            left = sum(
                count
                / self.widths[i].group.size
                * sum(self.widths[i].kept_in(b, kept[i]) for b in self.widths[i].blocks)
                for i, count in counter.items()
            )
            price *= (fixed + left) / len(groups)
        numel = 1
        for length in self._shapes[name]:
            numel *= length
        return price * numel

    def saved(self, bundle: list[int], kept: list[int], step: int) -> float:
        """What is saved when the widths of ``bundle`` lose ``step`` more channels in each block."""
        less = [size - step * (i in bundle) for i, size in enumerate(kept)]
        names = {name for i in bundle for name in self.tensors_of[i]}
        return sum(self.tensor_cost(name, kept) - self.tensor_cost(name, less) for name in names)

    def cost(self, kept: list[int]) -> float:
        """The whole cost."""
        full = [width.size for width in self.widths]
        changed = {name for names in self.tensors_of for name in names}
        return self.total - sum(self.tensor_cost(name, full) - self.tensor_cost(name, kept) for name in changed)


def _flops_per_weight(structure: Structure) -> dict[str, int]:
    """2 FLOPs for each place in which a weight is multiplied."""
    prices: Counter[str] = Counter()
    for contraction in structure.labels.contractions:
        name, value = structure.trace.names.get(contraction.weight), contraction.node.meta["val"]
        if name is not None:
            weight = contraction.weight.meta["val"]
            rows = weight.shape[1 - contraction.column_dim] * (contraction.groups if contraction.column_dim == 0 else 1)
            prices[name] += 2 * (value.numel() // rows)
    return dict(prices)
