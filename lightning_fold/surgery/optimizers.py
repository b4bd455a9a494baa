"""Replace parameters in optimizers: parameter groups and step counts are kept, and state tensors are transformed."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_fold.errors import ArgumentError

Transform = Callable[[Tensor], Tensor]
State = tuple[list[dict[str, Any]], dict[Any, Any]]
Group = dict[str, Any]
Places = dict[nn.Parameter, int]  # parameters in network order -> index of the module that holds each


def check_optimizers(optimizers: Iterable[Optimizer]) -> None:
    """Reject optimizers whose state is not stored per parameter.

    Raises:
        ArgumentError: one of them is ``torch.optim.LBFGS``.
    """
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise ArgumentError(
            "LBFGS keeps the history of all parameters in one vector, which cannot be adapted to new shapes; expected "
            "an optimizer with separate state for each parameter, for example torch.optim.AdamW."
        )


def rebind(optimizers: Iterable[Optimizer], old: nn.Parameter, new: nn.Parameter, change: Transform) -> None:
    """Replace ``old`` by ``new``, with the optimizer state of ``old`` transformed by ``change``."""
    for optimizer in optimizers:
        for group, position in _positions(optimizer, old):
            group["params"][position] = new
        if old in optimizer.state:
            optimizer.state[new] = _moved_state(optimizer, optimizer.state.pop(old), old.shape, change)


def train_beside(optimizers: Iterable[Optimizer], new: nn.Parameter, near: list[nn.Parameter], places: Places) -> None:
    """Add the parameter ``new``, without state, where a user would: in the group of its kind, in the network's order.

    It joins the group of a parameter with the same number of dimensions: one of ``near``, one trained together with the
    first of them, or the next in the network. Biases are often trained separately from weights, without weight decay or
    by another optimizer. If there is no such parameter, or only in groups of other layers, ``new`` joins the group of
    the first of ``near``.

    Args:
        optimizers: optimizers to search for ``near``; if none of them trains the first of ``near``, ``new`` is not
            trained either.
        new: a parameter of the network.
        near: parameters of the same module, or of the module that it replaced, the nearest first.
        places: the network's parameters, including ``new``.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in _groups_for(groups, new, near, places):
        group["params"].insert(_position(group, new, near, places), new)


def exchange(optimizers: Iterable[Optimizer], old: list[nn.Parameter], new: list[nn.Parameter], places: Places) -> None:
    """Replace the parameters ``old`` by ``new``, each added once; those of ``old`` still in the network are kept."""
    optimizers = list(optimizers)
    trained = [p for p in old if any(_positions(optimizer, p) for optimizer in optimizers)]
    gone, staying = [p for p in trained if p not in places], [p for p in trained if p in places]
    for parameter in new:
        if not _holds(old, parameter):
            train_beside(optimizers, parameter, gone + staying, places)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"][:] = [parameter for parameter in group["params"] if not _holds(gone, parameter)]
        for parameter in gone:
            optimizer.state.pop(parameter, None)


def saved_state(optimizer: Optimizer) -> State:
    """Groups and state of ``optimizer``, for :func:`restore_state`."""
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    return groups, {parameter: dict(state) for parameter, state in optimizer.state.items()}


def restore_state(optimizer: Optimizer, saved: State) -> None:
    """Restore the groups and state of ``optimizer`` from :func:`saved_state`."""
    groups, state = saved
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.clear()
        group.update(before)
    optimizer.state.clear()
    optimizer.state.update(state)


def copied(value: Tensor, like: Tensor) -> Tensor:
    """A copy of ``value`` in the memory format of ``like``."""
    for rank, channels_last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if like.dim() == rank and not like.is_contiguous() and like.is_contiguous(memory_format=channels_last):
            return value.clone(memory_format=channels_last)
    return value.clone(memory_format=torch.contiguous_format)


def _groups_for(groups: list[Group], new: nn.Parameter, near: list[nn.Parameter], places: Places) -> list[Group]:
    """The groups to train ``new`` in; several if its neighbours are trained in several."""
    beside = _of(groups, near[0]) if near else []
    if not beside:
        return []
    for other in near:
        if other.dim() == new.dim() and (found := _of(groups, other)):
            return found
    if any(parameter.dim() == new.dim() for group in beside for parameter in group["params"]):
        return beside
    order = {parameter: position for position, parameter in enumerate(places)}
    for other in sorted(order, key=lambda parameter: abs(order[parameter] - order[new])):
        found = _of(groups, other) if other.dim() == new.dim() else []
        if found and not _apart(beside, found, new, places):
            return found
    return beside


def _apart(beside: list[Group], others: list[Group], new: nn.Parameter, places: Places) -> bool:
    """Whether groups split the network by layers: all parameters of one side come before all those of the other."""
    ours = [places[new], *(places[p] for group in beside for p in group["params"] if p in places)]
    theirs = [places[p] for group in others for p in group["params"] if p in places]
    return max(ours) < min(theirs) or max(theirs) < min(ours)


def _position(group: Group, new: nn.Parameter, near: list[nn.Parameter], places: Places) -> int:
    """The position of ``new`` in ``group``: that of the removed parameters, or else by the network's order."""
    held = {parameter: position for position, parameter in enumerate(group["params"])}
    gone = [held[parameter] for parameter in near if parameter in held and parameter not in places]
    if gone:
        return gone[0]
    last = None
    for parameter in places:
        if parameter is new:
            break
        last = held.get(parameter, last)
    if last is not None:
        return last + 1
    return min((held[parameter] for parameter in places if parameter in held), default=len(held))


def _of(groups: list[Group], parameter: nn.Parameter) -> list[Group]:
    return [group for group in groups if _holds(group["params"], parameter)]


def _holds(parameters: Iterable[nn.Parameter], parameter: nn.Parameter) -> bool:
    return any(each is parameter for each in parameters)


def _positions(optimizer: Optimizer, parameter: Tensor) -> list[tuple[dict[str, Any], int]]:
    return [
        (group, position)
        for group in optimizer.param_groups
        for position, candidate in enumerate(group["params"])
        if candidate is parameter
    ]


def _moved_state(optimizer: Optimizer, state: dict[str, Any], shape: torch.Size, change: Transform) -> dict[str, Any]:
    """The state of one parameter after ``change``: step counts are kept, tensors are transformed like the parameter.

    A state tensor may have size 1 in some dimensions (Adafactor keeps one value per row and one per column). State of
    any other shape cannot be transformed: the parameter then starts without state, and a warning says so.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0}
    foreign = [key for key, value in tensors.items() if not _repeats(value.shape, shape)]
    if foreign:
        warnings.warn(
            f"{type(optimizer).__name__} stores {foreign} of a parameter of shape {tuple(shape)} in another shape; the "
            "rewritten parameter starts without optimizer state.",
            stacklevel=2,
        )
        return {}
    return state | {key: _moved(value, shape, change) for key, value in tensors.items()}


def _repeats(shape: torch.Size, whole: torch.Size) -> bool:
    return len(shape) == len(whole) and all(size in (1, full) for size, full in zip(shape, whole, strict=True))


def _moved(value: Tensor, shape: torch.Size, change: Transform) -> Tensor:
    with torch.no_grad():
        moved = change(value.expand(shape))
        for dim, size in enumerate(value.shape):
            if size < shape[dim]:
                moved = moved.narrow(dim, 0, 1)
        return copied(moved, like=value)
