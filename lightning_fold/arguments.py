"""Argument checks shared by several constructors; each error shows the call as it was written."""

from collections.abc import Iterable
from numbers import Integral
from typing import TypeVar

from lightning_fold.errors import ArgumentError

T = TypeVar("T")


def as_list(call: str, name: str, value: Iterable[T]) -> list[T]:
    """``value`` as a list; raise ``ArgumentError`` if it is a single string or number."""
    if isinstance(value, (str, int, float)):
        raise ArgumentError(f"{call}({name}={value!r}): expected a list, {name}=[{value!r}].")
    return list(value)


def check_choice(call: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ArgumentError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ArgumentError(f"{call}({name}={value!r}): expected one of {', '.join(map(repr, choices))}.")


def check_count(call: str, name: str, value: int, least: int = 0) -> None:
    """Raise ``ArgumentError`` unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, Integral) or value < least:
        raise ArgumentError(f"{call}({name}={value!r}): expected a whole number of at least {least}.")


def check_share(call: str, name: str, value: float, *, one: bool = False) -> None:
    """Raise ``ArgumentError`` unless ``value`` is a share in [0, 1), or in (0, 1] if ``one`` is set."""
    if not (0 < value <= 1 if one else 0 <= value < 1):
        raise ArgumentError(f"{call}({name}={value}): expected a share in {'(0, 1]' if one else '[0, 1)'}.")
