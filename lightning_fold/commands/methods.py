"""Every rewrite by a name, as the commands call it."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.folding import fold
from lightning_fold.rewrites.low_rank import factorize
from lightning_fold.rewrites.minimization import minimize
from lightning_fold.rewrites.pruning import prune
from lightning_fold.rewrites.repair import repair
from lightning_fold.structure.inputs import Inputs

Method = Literal["prune", "prune-l1", "prune-least-squares", "fold", "fold-least-squares", "factorize", "minimize"]

METHODS: dict[Method, Callable[..., RewriteReport]] = {
    "prune": prune,
    "prune-l1": partial(prune, importance="l1"),
    "prune-least-squares": partial(prune, compensate="least-squares"),
    "fold": fold,
    "fold-least-squares": partial(fold, compensate="least-squares"),
    "factorize": factorize,
    "minimize": minimize,
}


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
        batches: training batches, for the rewrite where it takes them, and for the statistics of the BatchNorms.
        skip: patterns of layers whose widths stay, for prune and fold.
        sizes: ``ratio``, ``keep_parameters`` and ``keep_flops``; those that are ``None`` keep the rewrite's default.

    Raises:
        ValueError: the method takes no such size, or no ``skip``; the message lists what it takes.
    """
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    given |= {"skip": list(skip)} if skip else {}
    accepted = inspect.signature(METHODS[method]).parameters
    if unknown := [name for name in given if name not in accepted]:
        expected = " or ".join(name for name in sizes if name in accepted)
        raise ValueError(
            f"the method {method!r} takes no {unknown[0]}={given[unknown[0]]}; expected "
            f"{expected or 'no size, since the zeros of the network say what goes'}."
        )
    data: dict[str, Any] = {}
    if batches is not None and "batches" in accepted:
        batches = list(batches)
        data = {"batches": batches} | ({"repair": "data"} if "repair" in accepted else {})
    report = METHODS[method](network, inputs, **given, **data)
    if batches is not None and "repair" not in data:
        repair(network, batches)
    return report
