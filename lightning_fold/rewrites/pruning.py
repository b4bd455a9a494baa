"""prune: whole channels, by importance."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.report import Kept, RewriteReport
from lightning_fold.rewrites.removal import complete, remove
from lightning_fold.rewrites.transaction import rewrite
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.structure.groups import ChannelGroup, Member, Structure, group_channels, read_structure
from lightning_fold.structure.trace import Inputs
from lightning_fold.surgery import Surgery

Importance = Literal["l1", "l2"]


@on_network
def prune(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    ratio: float = 0.5,
    importance: Importance = "l2",
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Remove the least important channels of every width of ``model``, in place.

    Args:
        model: any network that ``torch.export`` can trace.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        ratio: share of the channels of each group that goes, in [0, 1); at least one channel stays.
        importance: norm of all weights that write a channel, ``"l1"`` or ``"l2"``.
        optimizers: optimizers of the network; they go on with the moments of what stays.

    Raises:
        ValueError: ``ratio`` or ``importance`` is out of range, or no channel of the network can be removed.
        RewriteError: the network does not run afterwards; everything is as it was before.
    """
    if importance not in ("l1", "l2"):
        raise ValueError(f"prune(importance={importance!r}): expected 'l1' or 'l2'.")
    structure, groups = shrinkable_groups("prune", model, example_inputs, ratio)

    def change(surgery: Surgery) -> list[Kept]:
        removed = torch.zeros(structure.count, dtype=torch.bool)
        for group in groups:
            scores = channel_importance(surgery, group, importance)
            removed[group.ids[scores.argsort(stable=True)[: group.size - channels_left(group, ratio)]]] = True
        remove(surgery, structure, complete(structure, removed))
        return kept_groups(structure)

    return rewrite("prune", model, example_inputs, optimizers, change)


def shrinkable_groups(
    method: str, model: nn.Module, example_inputs: Inputs, ratio: float
) -> tuple[Structure, list[ChannelGroup]]:
    """The structure of ``model`` and the channel groups that ``prune`` and ``fold`` may shrink.

    Raises:
        ValueError: ``ratio`` is outside [0, 1), or no group can shrink.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"{method}(ratio={ratio}): expected a share of the channels in [0, 1), for example ratio=0.5.")
    structure = read_structure(model, example_inputs)
    groups = [group for group in group_channels(structure) if group.pinned is None and group.size > 1]
    if not groups:
        raise ValueError(
            f"{method}({type(model).__name__}): expected a network with at least one hidden width of channels between "
            "two layers; every channel is fixed by the inputs, the outputs or an operator without a rule."
        )
    return structure, groups


def channels_left(group: ChannelGroup, ratio: float) -> int:
    """How many channels of ``group`` stay at this ratio."""
    return max(round((1 - ratio) * group.size), 1)


def channel_importance(surgery: Surgery, group: ChannelGroup, importance: Importance) -> Tensor:
    """(channels,) the norm of all weights of at least two dimensions that write each channel."""
    rows = [channel_rows(surgery, m) for m in group.members if not m.reads and surgery.tensor(m.tensor).dim() > 1]
    joined = torch.cat(rows or [channel_rows(surgery, member) for member in group.members], dim=1)
    return joined.norm(p=1 if importance == "l1" else 2, dim=1).cpu()


def channel_rows(surgery: Surgery, member: Member) -> Tensor:
    """(channels, elements) everything that one member holds for each channel."""
    moved = surgery.tensor(member.tensor).detach().movedim(member.dim, 0)
    return moved[member.indices.to(moved.device)].flatten(1)


def kept_groups(structure: Structure) -> list[Kept]:
    """The groups that an operator without a rule holds fast."""
    if not any(pin is not None and "has no rule" in pin.reason for pin in structure.pinned.values()):
        return []
    return [
        Kept(group.name, group.size, group.pinned)
        for group in group_channels(structure)
        if group.pinned is not None and "has no rule" in group.pinned
    ]
