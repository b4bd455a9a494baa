"""Optimizers that go on when parameters are replaced: the same groups, moments that follow, step counts."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

Transform = Callable[[Tensor], Tensor]
State = tuple[list[dict[str, Any]], dict[Any, Any]]


def check_optimizers(optimizers: Iterable[Optimizer]) -> None:
    """Refuse an optimizer whose state belongs to no single parameter.

    Raises:
        ValueError: one of them is ``torch.optim.LBFGS``.
    """
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise ValueError(
            "LBFGS keeps the history of all parameters in one row, which cannot follow their change of shape; expected "
            "an optimizer with state for each parameter, for example torch.optim.AdamW."
        )


def rebind(optimizers: Iterable[Optimizer], old: nn.Parameter, new: nn.Parameter, change: Transform) -> None:
    """Put ``new`` in the place of ``old``, with the state of ``old`` after ``change``."""
    for optimizer in optimizers:
        for group, position in _positions(optimizer, old):
            group["params"][position] = new
        if old in optimizer.state:
            optimizer.state[new] = _moved_state(optimizer, optimizer.state.pop(old), old.shape, change)


def train_beside(optimizers: Iterable[Optimizer], new: nn.Parameter, neighbour: Tensor) -> None:
    """Add the parameter ``new``, without state, to the group of ``neighbour``."""
    for optimizer in optimizers:
        for group, position in _positions(optimizer, neighbour):
            group["params"].insert(position + 1, new)


def exchange(optimizer: Optimizer, old: list[nn.Parameter], new: list[nn.Parameter]) -> None:
    """Put the parameters ``new`` in the place of ``old`` in ``optimizer``, each once; what is in both stays."""
    fresh = [parameter for parameter in new if not any(parameter is other for other in old)]
    gone = [parameter for parameter in old if not any(parameter is other for other in new)]
    for group in optimizer.param_groups:
        for parameter in gone:
            positions = [i for i, candidate in enumerate(group["params"]) if candidate is parameter]
            for position in positions:
                group["params"][position : position + 1] = fresh
                fresh = []
    for parameter in gone:
        optimizer.state.pop(parameter, None)


def saved_state(optimizer: Optimizer) -> State:
    """Groups and state of ``optimizer``, for :func:`restore_state`."""
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    return groups, {parameter: dict(state) for parameter, state in optimizer.state.items()}


def restore_state(optimizer: Optimizer, saved: State) -> None:
    """Put ``optimizer`` back as it was when it was saved."""
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


def _positions(optimizer: Optimizer, parameter: Tensor) -> list[tuple[dict[str, Any], int]]:
    return [
        (group, position)
        for group in optimizer.param_groups
        for position, candidate in enumerate(group["params"])
        if candidate is parameter
    ]


def _moved_state(optimizer: Optimizer, state: dict[str, Any], shape: torch.Size, change: Transform) -> dict[str, Any]:
    """The state of one parameter after ``change``: step counts stay, moments are transformed like the parameter.

    A moment may be repeated along some dimensions (Adafactor keeps one for each row and one for each column). State of
    another shape cannot be read: that parameter starts without state, and a warning says so.
    """
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0}
    foreign = [key for key, value in tensors.items() if not _repeats(value.shape, shape)]
    if foreign:
        warnings.warn(
            f"{type(optimizer).__name__} keeps {foreign} for a parameter of shape {tuple(shape)} in another shape; the "
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
