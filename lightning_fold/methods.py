"""Every rewrite by a name, as the commands call it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn

from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.folding import fold
from lightning_fold.rewrites.low_rank import factorize
from lightning_fold.rewrites.minimization import minimize
from lightning_fold.rewrites.pruning import prune
from lightning_fold.structure.trace import Inputs

Method = Literal["prune", "prune-l1", "fold", "factorize", "minimize"]


def _by_ratio(rewrite):
    def sized(model, inputs, *, ratio=None, keep_parameters=None, **options):
        ratio = 1 - keep_parameters**0.5 if keep_parameters is not None else 0.5 if ratio is None else ratio
        return rewrite(model, inputs, ratio=ratio, **options)

    return sized


prune, fold = _by_ratio(prune), _by_ratio(fold)  # TODO(budgets)

METHODS: dict[Method, Callable[..., RewriteReport]] = {
    "prune": prune,
    "prune-l1": partial(prune, importance="l1"),
    "fold": fold,
    "factorize": factorize,
    "minimize": minimize,
}


def apply(method: Method, network: nn.Module, inputs: Inputs, **options: Any) -> RewriteReport:
    """Rewrite ``network``, in place, by the method of that name.

    Args:
        method: a key of ``METHODS``.
        network: the network.
        inputs: example inputs, batch first.
        options: keyword arguments of the rewrite; those that are ``None`` keep the rewrite's own default.

    Raises:
        ValueError: the method takes no such option; the message lists those it takes.
    """
    given = {name: value for name, value in options.items() if value is not None}
    accepted = inspect.signature(METHODS[method]).parameters
    if unknown := [name for name in given if name not in accepted]:
        sizes = [name for name in options if name in accepted]
        raise ValueError(
            f"the method {method!r} takes no {unknown[0]}={given[unknown[0]]}; expected "
            f"{' or '.join(sizes) if sizes else 'no size: what it removes is given by the zeros'}."
        )
    return METHODS[method](network, inputs, **given)
