"""The rewrites by name, as the commands call them."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from lightning_fold.class_paths import resolve
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.calibration import from_batches
from lightning_fold.rewrites.method import Method
from lightning_fold.rewrites.reduction.recovery.recovery import improved
from lightning_fold.rewrites.repair import repair as estimate_again
from lightning_fold.rewrites.size import Keep, Of

_REDUCTION = "lightning_fold.rewrites.reduction"

# The names that commands know; to add a method, add a line here.
METHODS = {
    "prune": f"{_REDUCTION}.prune.prune",
    "prune-l1": f"{_REDUCTION}.prune.prune(importance='l1')",
    "prune-least-squares": f"{_REDUCTION}.prune.prune(compensate='least-squares')",
    "fold": f"{_REDUCTION}.fold.fold",
    "fold-least-squares": f"{_REDUCTION}.fold.fold(compensate='least-squares')",
    "factorize": "lightning_fold.rewrites.factorization.factorize.factorize",
    "minimize": "lightning_fold.rewrites.exact.minimize.minimize",
}


def method_of(call: str, name: str) -> Method:
    """The method with this name or class path; ``call`` is the command, for errors."""
    return resolve(call, "method", name, METHODS)


def takes(method: Method, argument: str) -> bool:
    """Whether ``method`` takes an argument of this name."""
    return argument in inspect.signature(method).parameters


def apply(
    name: str,
    network: nn.Module,
    inputs: Inputs,
    *,
    keep: Keep | None = None,
    of: Of = "parameters",
    skip: Sequence[str] = (),
    repair: str = "default",
    batches: Iterable[Any] | None = None,
) -> RewriteReport:
    """Rewrite ``network`` in place by the method ``name``.

    Args:
        name: a key of ``METHODS``, or the path of a class or function.
        network: the network.
        inputs: example inputs, batch first.
        keep: share to keep; ``None`` uses the method's default, 0.5 in ``METHODS``.
        of: what ``keep`` is a share of.
        skip: patterns of layers whose widths are kept, for methods that take them.
        repair: "default" uses the method's own default, "none" turns repair off. "data" re-estimates statistics on
            ``batches``: BatchNorm statistics if the method has no repair of its own, undone if the outputs on the last
            batch get worse. Other values are passed to the method.
        batches: training batches, for methods that take them and for the repair.

    Raises:
        ArgumentError: the method takes no size, no ``skip`` or no such repair.
    """
    method = method_of("apply", name)
    given: dict[str, Any] = {} if keep is None else {"keep": keep}
    given |= {} if of == "parameters" else {"of": of}
    given |= {"skip": list(skip)} if skip else {}
    own_repair = takes(method, "repair")
    if repair not in ("default", "none", "data") or (own_repair and repair != "default"):
        given["repair"] = repair
    _check(name, method, given)
    if batches is None:
        return method(network, inputs, **given)
    batches = list(batches)
    given |= {"batches": batches} if takes(method, "batches") else {}
    rewrite = partial(method, network, inputs, **given)
    return rewrite() if own_repair or repair != "data" else _repaired(network, inputs, batches, rewrite)


def _check(name: str, method: Method, given: dict[str, Any]) -> None:
    """Raise ``ArgumentError`` for the first argument that the method does not take."""
    advice = {
        "keep": "no size, since the zeros of the network determine what is removed",
        "of": "no size, since the zeros of the network determine what is removed",
        "skip": "skip with prune and fold only",
        "repair": "'default', 'none' or 'data'",
    }
    for argument, value in given.items():
        if not takes(method, argument):
            raise ArgumentError(f"the method {name!r} takes no {argument}={value!r}; expected {advice[argument]}.")


def _repaired(
    network: nn.Module, inputs: Inputs, batches: list[Any], rewrite: Callable[[], RewriteReport]
) -> RewriteReport:
    """Rewrite, then re-estimate BatchNorm statistics on all batches but the last; undo if outputs on that get worse."""
    dense = from_batches(network, inputs, batches[-1:])
    report = rewrite()
    fitted = batches[:-1] or batches
    better, notes = improved("BatchNorm re-estimation", network, dense, lambda copy: estimate_again(copy, fitted))
    network.load_state_dict(better.state_dict())
    return replace(report, notes=(*report.notes, *notes))
