"""The penalties on one weight: built-in ones by name, others by dotted path."""

import inspect
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.regularizers.differences import first_difference, second_difference
from lightning_fold.regularizers.group_sparsity import group_sparsity
from lightning_fold.regularizers.nuclear import nuclear_norm
from lightning_fold.regularizers.penalty import times_weights


class Penalty(Protocol):
    """A function of the weight of one layer, or an object that is called like one.

    It may have parameters ``axes`` and ``squared``, which get the values of ``Smoothness``, and others with defaults.
    A class gets them all in its constructor; one object is then used for all layers.
    """

    def __call__(self, weight: Tensor) -> Tensor:
        """The penalty, a scalar that autograd differentiates, on a weight (O, I, ...)."""
        ...


# A built-in penalty has one file and one line here.
BUILT_IN: dict[str, Callable[..., Any]] = {
    "nuclear_norm": nuclear_norm,
    "first_difference": times_weights(first_difference),
    "second_difference": times_weights(second_difference),
    "group_sparsity": group_sparsity,
}


def path_of(call: str, penalty: Any) -> str:
    """The name of a penalty in settings: a built-in name, or the dotted path of a function or class.

    Raises:
        ArgumentTypeError: ``penalty`` is neither a string nor a function or class.
    """
    if isinstance(penalty, str):
        return penalty
    if not (inspect.isroutine(penalty) or isinstance(penalty, type)):
        raise ArgumentTypeError(
            f"{call}(penalties={{{penalty!r}: ...}}): expected a name, a dotted path, a function or a class. Write "
            "arguments beside the strength: {MyPenalty: {'strength': 0.01, 'power': 3}}."
        )
    return _built_in(penalty) or f"{penalty.__module__}.{penalty.__qualname__}"


def _built_in(penalty: Any) -> str | None:
    """The name of a built-in penalty, given its function."""
    return next((name for name, function in BUILT_IN.items() if inspect.unwrap(function) is penalty), None)


def find_penalty(call: str, name: str) -> Callable[..., Any]:
    """The function or class of a penalty.

    Args:
        call: the caller, for the message.
        name: name of a built-in penalty, or a dotted path.

    Raises:
        ArgumentError: no penalty has this name, or the object at the path cannot be called.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        found = pkgutil.resolve_name(name) if "." in name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(
            f"{call}(penalties={{{name!r}: ...}}): {error}; expected the dotted path of a function or class that can "
            "be imported, for example 'my_package.penalties.spectral_norm'."
        ) from error
    if not callable(found):
        raise ArgumentError(
            f"{call}(penalties={{{name!r}: ...}}): expected finite strengths of at least 0 for names among "
            f"{', '.join(BUILT_IN)}, or for dotted paths of functions or classes; for example {{'nuclear_norm': 1e-3}}."
        )
    return BUILT_IN.get(_built_in(found) or "", found)


def with_arguments(
    call: str, name: str, penalty: Callable[..., Any], own: Mapping[str, Any], shared: Mapping[str, Any]
) -> Penalty:
    """``penalty`` as a function of the weight alone.

    Args:
        call: the caller, for the message.
        name: name of the penalty.
        penalty: the function or class.
        own: its own arguments.
        shared: default arguments, passed if the penalty has such parameters and ``own`` does not set them.

    Raises:
        ArgumentError: an argument has no matching parameter, or a required one is missing.
    """
    given = {key: value for key, value in shared.items() if takes(penalty, key)} | dict(own)
    weight = () if isinstance(penalty, type) else (None,)
    try:
        inspect.signature(penalty).bind(*weight, **given)
    except TypeError as error:
        raise ArgumentError(
            f"{call}(penalties={{{name!r}: {dict(own)}}}): {error}; expected the arguments of "
            f"{penalty.__name__}{inspect.signature(penalty)}."
        ) from error
    return penalty(**given) if isinstance(penalty, type) else partial(penalty, **given)


def takes(penalty: Callable[..., Any], parameter: str) -> bool:
    """Whether a penalty has a parameter of this name."""
    return parameter in inspect.signature(penalty).parameters


def tags(names: Iterable[str]) -> dict[str, str]:
    """The names of penalties in logs: the last part of a dotted path, or the whole path if two have the same ending."""
    ends = {name: name.rpartition(".")[2] for name in names}
    counts = Counter(ends.values())
    return {name: end if counts[end] == 1 else name for name, end in ends.items()}
