"""Channel groups: every (tensor, dimension, index) that must be kept or removed together."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_fold.inputs import Inputs
from lightning_fold.structure.columns import Columns, find_columns
from lightning_fold.structure.constant_values import Constants
from lightning_fold.structure.constants import constants
from lightning_fold.structure.graph.trace import Trace, trace, unwrapped
from lightning_fold.structure.label_channels import label_channels
from lightning_fold.structure.labels import PINNED, WINDOW, Axis, Labels, Pin


@dataclass(frozen=True)
class Member:
    """The part of one tensor that a channel group owns.

    Attributes:
        tensor: dotted name of the parameter or buffer.
        dim: its dimension.
        indices: (channels, m) positions along ``dim``; m is 1, or more after a flatten or if a whole
            head is one channel.
        reads: whether these are a consumer's input columns (a fold sums them) or a producer's rows (a fold averages).
    """

    tensor: str
    dim: int
    indices: Tensor
    reads: bool


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one width of the network, each of which can be removed from all members at once.

    Attributes:
        members: the parts of tensors that belong to the channels; row ``i`` of every member belongs to channel ``i``.
        ids: (channels,) the number of each channel among all groups of its structure.
        pinned: why the channels cannot be removed, or ``None``.
    """

    members: tuple[Member, ...]
    ids: Tensor
    pinned: str | None

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.ids)

    @property
    def name(self) -> str:
        """The tensor that first writes these channels."""
        return self.members[0].tensor

    def __str__(self) -> str:
        sides = ", ".join(f"{m.tensor}[{':, ' * m.dim}{'reads' if m.reads else 'writes'}]" for m in self.members)
        size = f"{self.size} channel{'' if self.size == 1 else 's'}"
        return f"{size}: {sides}" + (f" (stays: {self.pinned})" if self.pinned else "")


@dataclass(frozen=True)
class Structure:
    """Everything that was read from one network.

    Attributes:
        trace: its graph.
        constants: the value of every node; NaN where it depends on the input.
        labels: which labels every value carries.
        group_of: (labels,) the group of each label; a group is a set of labels that is kept or removed as a whole.
        pinned: group -> why it must be kept; ``None`` if the network's code fixes it.
    """

    trace: Trace
    constants: Constants
    labels: Labels
    group_of: Tensor
    pinned: dict[int, Pin | None]

    @cached_property
    def count(self) -> int:
        """Number of groups."""
        return int(self.group_of.max()) + 1

    @cached_property
    def uses(self) -> Counter[str]:
        """How often each tensor, by its dotted name, is read."""
        names = self.trace.names
        return Counter(names[node] for node in names for _ in node.users)

    @cached_property
    def columns(self) -> Columns:
        """Which dimensions of which tensors are columns of contractions."""
        return find_columns(self.trace, self.labels)

    def groups(self, axis: Axis) -> Tensor:
        """(size,) the group of each index of one dimension of one tensor."""
        return self.group_of[axis.start : axis.start + axis.size]


def read_structure(
    model: nn.Module, example_inputs: Inputs, *, ask_attributes: bool = True, whole_heads: bool = False
) -> Structure:
    """Trace ``model`` and find its constants and its channel groups. The model is not changed.

    Args:
        model: any network that ``torch.export`` can trace.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.
        ask_attributes: whether to assume that the code reads the Python attributes that repeat the size of an attention
            head.
        whole_heads: whether an attention head is one channel if its channels can only be removed together. Rewrites
            that choose which channels to remove need this.

    Raises:
        TraceError: the model cannot be traced with ``example_inputs``.
    """
    graph = trace(model, example_inputs)
    known = constants(graph)
    labels = label_channels(graph, known, ask_attributes=ask_attributes, whole_heads=whole_heads)
    group_of = labels.groups()
    pinned: dict[int, Pin | None] = {int(group_of[PINNED]): None}
    for pin in labels.pins:
        for group in group_of[pin.labels].unique().tolist():
            pinned.setdefault(group, pin)
    return Structure(graph, known, labels, group_of, pinned)


def channel_groups(model: nn.Module, example_inputs: Inputs) -> list[ChannelGroup]:
    """Find the widths of ``model``, and all dimensions that shrink together with each.

    Args:
        model: any network that ``torch.export`` can trace; it is not changed.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.

    Returns:
        One :class:`ChannelGroup` for each set of dimensions that share their channels, in the order of the network.
        Groups that the inputs or outputs fix are included, with the reason.

    Raises:
        TraceError: the model cannot be traced with ``example_inputs``.
    """
    return group_channels(read_structure(unwrapped(model), example_inputs))


def group_channels(structure: Structure) -> list[ChannelGroup]:
    """The groups of ``structure`` collected by the dimensions they live in."""
    owned: dict[int, list[tuple[tuple[str, int], Tensor]]] = {}
    for key, axis in structure.labels.axes.items():
        groups = structure.groups(axis)
        order = torch.argsort(groups, stable=True)
        found, counts = torch.unique_consecutive(groups[order], return_counts=True)
        for group, indices in zip(found.tolist(), torch.split(order, counts.tolist()), strict=True):
            owned.setdefault(group, []).append((key, indices))
    collected: dict[tuple, list[int]] = {}
    for group, parts in owned.items():
        pin = structure.pinned.get(group)
        if pin is not None and pin.reason == WINDOW:
            continue
        reason = why_pinned(pin) if group in structure.pinned else None
        signature = (reason, tuple((key, len(indices)) for key, indices in parts))
        collected.setdefault(signature, []).append(group)
    reading = reading_axes(structure)
    result = []
    for (reason, parts), groups in collected.items():
        members = tuple(
            Member(key[0], key[1], torch.stack([owned[group][i][1] for group in groups]), key in reading)
            for i, (key, _) in enumerate(parts)
        )
        writers_first = tuple(sorted(members, key=lambda member: member.reads))
        result.append(ChannelGroup(writers_first, torch.tensor(groups), reason))
    return result


def reading_axes(structure: Structure) -> set[tuple[str, int]]:
    """The dimensions that are a contraction's columns."""
    return set(structure.columns.read)


def why_pinned(pin: Pin | None) -> str:
    """Why a group must be kept, in words."""
    return (
        "fixed by the network's code" if pin is None else f"{pin.layer or 'the network'} ({pin.operator}) {pin.reason}"
    )
