"""Importances of channels: one file and one line here for each."""

from collections.abc import Callable

from lightning_fold.class_paths import resolve
from lightning_fold.errors import ArgumentTypeError
from lightning_fold.rewrites.reduction.importances.importance import Importance, Score, ScoreFunction

_HERE = "lightning_fold.rewrites.reduction.importances"

IMPORTANCES = {
    "l1": f"{_HERE}.norm.Norm(order=1)",
    "l2": f"{_HERE}.norm.Norm(order=2)",
    "taylor": f"{_HERE}.taylor.Taylor",
    "activation": f"{_HERE}.activation.Activation",
    "reconstruction": f"{_HERE}.reconstruction.Reconstruction",
}


def importance_of(call: str, importance: str | Importance | Score) -> Importance:
    """The importance for a name, a class path, an object or a function of network and group.

    Raises:
        ArgumentError: the name is unknown, or there is no such class.
        ArgumentTypeError: ``importance`` is none of these.
    """
    found = resolve(call, "importance", importance, IMPORTANCES) if isinstance(importance, str) else importance
    if isinstance(found, Importance):
        return found
    if not isinstance(found, Callable) or isinstance(found, type):
        raise ArgumentTypeError(
            f"{call}(importance={importance!r}): expected a name, an Importance or a function of network and channel "
            f"group, found a {type(found).__name__}."
        )
    return ScoreFunction(found)
