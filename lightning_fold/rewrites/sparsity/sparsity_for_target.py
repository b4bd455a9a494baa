"""Find a sparsity after which minimize does not shrink the network far below a target size."""

from copy import deepcopy

from torch import nn

from lightning_fold.inputs import Inputs
from lightning_fold.rewrites.exact.minimize import minimize
from lightning_fold.rewrites.sparsity.sparsify import Criterion, sparsify

_BISECTIONS = 12


def sparsity_within(
    model: nn.Module,
    sparsity: float,
    parameters: float,
    example_inputs: Inputs,
    *,
    criterion: Criterion = "magnitude",
    select_inputs: bool = False,
) -> float:
    """``sparsity``, or the smallest share found after which minimize leaves at most ``parameters``, if that is less.

    Args:
        model: the network; it is not changed, because copies of it are sparsified and minimized.
        sparsity: the largest share of zeros, in [0, 1).
        parameters: target number of parameters.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.
        criterion: as for :func:`sparsify`.
        select_inputs: whether input features are also ranked and removed.
    """

    def left(share: float) -> int:
        trial = deepcopy(model)
        sparsify(trial, share, criterion=criterion, example_inputs=example_inputs, select_inputs=select_inputs)
        return minimize(trial, example_inputs, select_inputs=select_inputs).parameters_after

    if left(sparsity) >= parameters:
        return sparsity
    low, high = 0.0, sparsity
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= parameters else (middle, high)
    return high
