"""Every rewrite by a name, as the commands call it."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import nn

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.calibration import from_batches
from lightning_fold.rewrites.exact.minimize import minimize
from lightning_fold.rewrites.factorization.factorize import factorize
from lightning_fold.rewrites.reduction.fold import fold
from lightning_fold.rewrites.reduction.prune import prune
from lightning_fold.rewrites.reduction.recovery.recovery import improved
from lightning_fold.rewrites.repair import repair

SizedMethod = Literal["prune", "prune-l1", "prune-least-squares", "fold", "fold-least-squares", "factorize"]
Method = Literal[SizedMethod, "minimize"]

METHODS: dict[Method, Callable[..., RewriteReport]] = {
    "prune": prune,
    "prune-l1": partial(prune, importance="l1"),
    "prune-least-squares": partial(prune, compensate="least-squares"),
    "fold": fold,
    "fold-least-squares": partial(fold, compensate="least-squares"),
    "factorize": factorize,
    "minimize": minimize,
}


SIZES = ("ratio", "keep_parameters", "keep_flops")


def apply(
    method: Method,
    network: nn.Module,
    inputs: Inputs,
    *,
    batches: Iterable[Any] | None = None,
    skip: Sequence[str] = (),
    **sizes: float | None,
) -> RewriteReport:
    """Rewrite ``network``, in place, by the method of that name.

    Args:
        method: a key of ``METHODS``.
        network: the network.
        inputs: example inputs, batch first.
        batches: training batches, for the rewrite where it takes them, and to repair the network. A repair that makes
            the outputs on the last one worse is undone and noted in the report.
        skip: patterns of layers whose widths stay, for prune and fold.
        sizes: some of ``SIZES``; those that are ``None`` keep the rewrite's default.

    Raises:
        ValueError: the method takes no such size, or no ``skip``; the message lists what it takes.
    """
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    given |= {"skip": list(skip)} if skip else {}
    accepted = inspect.signature(METHODS[method]).parameters
    if unknown := [name for name in given if name not in accepted]:
        expected = " or ".join(name for name in SIZES if name in accepted)
        without_size = "no size, since the zeros of the network say what goes"
        advice = "it with prune and fold alone" if unknown[0] == "skip" else expected or without_size
        raise ArgumentError(f"the method {method!r} takes no {unknown[0]}={given[unknown[0]]}; expected {advice}.")
    rewrite = partial(METHODS[method], network, inputs, **given)
    if batches is None:
        return rewrite()
    batches = list(batches)
    if "repair" in accepted:
        return rewrite(batches=batches, repair="data")
    return _repaired(network, inputs, batches, partial(rewrite, batches=batches) if "batches" in accepted else rewrite)


def _repaired(
    network: nn.Module, inputs: Inputs, batches: list[Any], rewrite: Callable[[], RewriteReport]
) -> RewriteReport:
    """Rewrite, then estimate BatchNorm statistics on all batches but the last, if the outputs on that get no worse."""
    dense = from_batches(network, inputs, batches[-1:])
    report = rewrite()
    fitted = batches[:-1] or batches
    better, notes = improved("BatchNorm re-estimation", network, dense, lambda copy: repair(copy, fitted))
    network.load_state_dict(better.state_dict())
    return replace(report, notes=(*report.notes, *notes))
