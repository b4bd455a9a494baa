"""Layer widths after a removal: count the remaining parameters, and round widths to multiples that suit hardware."""

from math import gcd

from torch import Tensor

from lightning_fold.report import Kept
from lightning_fold.rewrites.channels.removal import Removal, complete
from lightning_fold.structure.groups import ChannelGroup, Structure, group_channels


def parameters_left(structure: Structure, removed: Tensor) -> int:
    """Number of parameters without the groups in ``removed`` (groups,); newly created biases are not counted."""
    names = structure.trace.names
    grouped = {names[c.weight]: c for c in structure.labels.contractions if c.groups > 1 and c.weight in names}
    total = 0
    for name, parameter in structure.trace.modules[""].named_parameters():
        contraction = grouped.get(name)
        if contraction is not None and contraction.rows is not None and contraction.columns is not None:
            rows, columns = (
                (~removed[structure.group_of[side]]).reshape(contraction.groups, -1).sum(1)
                for side in (contraction.rows, contraction.columns)
            )
            total += int((rows * columns).sum()) * parameter[0, 0].numel()
            continue
        left = 1
        for dim, size in enumerate(parameter.shape):
            axis = structure.labels.axes.get((name, dim))
            left *= size if axis is None else int((~removed[structure.groups(axis)]).sum())
        total += left
    return total


def fill(structure: Structure, removal: Removal, multiple_of: int, *, exact: bool = False) -> Removal:
    """Keep more groups until every remaining width is a multiple of ``multiple_of``, or the whole width.

    Args:
        structure: the network.
        removal: the planned removal; it is not changed.
        multiple_of: number by which every width is to be divisible, at least 1.
        exact: whether channels that share statistics must be removed together or not at all.
    """
    if multiple_of == 1:
        return removal
    widths = group_channels(structure)
    filled = Removal(removal.removed.clone(), dict(removal.reasons))
    while any([_fill_up(width, filled, multiple_of) for width in widths]):  # noqa: C419, every width must be filled
        completed = complete(structure, filled.removed, exact=exact)
        filled = Removal(completed.removed, filled.reasons | completed.reasons)
    return filled


def fill_cost(structure: Structure, before: Removal, filled: Removal, multiple_of: int) -> list[Kept]:
    """The channels that :func:`fill` kept, per width, with their cost in parameters."""
    removed, costs = filled.removed.clone(), []
    for width in group_channels(structure) if multiple_of > 1 else []:
        back = width.ids[before.removed[width.ids] & ~removed[width.ids]]
        if len(back):
            left = parameters_left(structure, removed)
            removed[back] = True
            cost = left - parameters_left(structure, removed)
            costs.append(Kept(width.name, len(back), f"fill the width up to a multiple of {multiple_of}", cost))
    return costs


def _fill_up(width: ChannelGroup, removal: Removal, multiple_of: int) -> bool:
    gone = width.ids[removal.removed[width.ids]]
    each = gcd(*(member.indices.shape[1] for member in width.members))  # 2 for pairs that are rotated together
    short = min(-(width.size - len(gone)) % (multiple_of // gcd(multiple_of, each)), len(gone))
    for group in gone[:short].tolist():
        removal.removed[group] = False
        removal.reasons[group] = f"fills the width up to a multiple of {multiple_of}"
    return short > 0
