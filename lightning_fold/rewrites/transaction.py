"""The frame of every rewrite: measure, change, run, compare and report; undo everything if something fails."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lightning_fold.complexity import count_parameters, counted_run
from lightning_fold.errors import ArgumentError, RewriteError
from lightning_fold.inputs import Inputs, call
from lightning_fold.layers import CompensatedNorm
from lightning_fold.report import Change, Kept, RewriteReport
from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.structure.groups import read_structure
from lightning_fold.surgery.transaction import Surgery

# Largest relative change of an output that an exact rewrite may cause; a larger one undoes it. Some thousand rounding
# errors in single precision, and about ten in half precision, where the output already shows every layer's rounding.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def rewrite(
    method: str,
    model: nn.Module,
    example_inputs: Inputs,
    optimizers: Iterable[Optimizer],
    change: Callable[[Surgery], Iterable[Kept]],
    *,
    exact: bool = False,
) -> RewriteReport:
    """Run ``change`` as one transaction and return its report.

    Args:
        method: name of the rewrite, for the report and error messages.
        model: the network, changed in place.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.
        optimizers: all optimizers that train the network.
        change: makes the changes and returns what could not be removed.
        exact: whether the outputs must not change.

    Raises:
        RewriteError: the rewritten network does not run, or is not exact; the network is unchanged.
        ArgumentError: the network has NaN or infinite weights, or returns NaN or no floating-point tensor.
    """
    shapes, parameters = _shapes(model), count_parameters(model)
    expected, flops = counted_outputs(model, example_inputs)
    _check(method, model, expected)
    with Surgery(model, optimizers) as surgery:
        kept = tuple(change(surgery))
        if exact:
            error, flops_after = check_exact(method, model, example_inputs, expected)
        else:
            error, flops_after = None, _run(method, model, example_inputs)[1]
    return RewriteReport(
        method=method,
        parameters_before=parameters,
        parameters_after=count_parameters(model),
        flops_before=flops,
        flops_after=flops_after,
        max_relative_error=error,
        changes=compare_shapes(shapes, _shapes(model)),
        kept=kept,
    )


def check_exact(method: str, model: nn.Module, example_inputs: Inputs, expected: list[Tensor]) -> tuple[float, int]:
    """The relative error of the outputs, and the FLOPs of the run.

    Raises:
        RewriteError: the network does not run, or its outputs differ from ``expected`` by more than rounding.
    """
    found, flops = _run(method, model, example_inputs)
    computed_in = {tensor.dtype for tensor in [*expected, *model.parameters()]}
    computed_in |= {getattr(torch, norm.precision) for norm in _norms(model) if norm.precision is not None}
    tolerance = max((TOLERANCES[dtype] for dtype in computed_in if dtype in TOLERANCES), default=1e-4)
    error = relative_error(found, expected)
    if not error <= tolerance:
        raise RewriteError(
            f"{method} would change the outputs of {type(model).__name__} by {error:.2g} of their size; expected "
            f"at most {tolerance:.0e}. The network is as it was before. Try float64: model.double(), with example "
            "inputs of the same type."
        )
    return error, flops


def asking_attributes(run: Callable[[bool], RewriteReport], model: nn.Module, example_inputs: Inputs) -> RewriteReport:
    """Try ``run(True)``, which relies on Python attributes that depend on channels; if it fails, ``run(False)``.

    Such attributes repeat the size of attention heads, or hold the number that is added to a mean over channels. The
    network's code may not read them.

    Args:
        run: a rewrite of ``model``; its argument says whether to rely on such attributes.
        model: the network.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.

    Raises:
        RewriteError: there are no such attributes, or both attempts fail; the network is unchanged.
    """
    try:
        return run(True)
    except RewriteError:
        labels = read_structure(model, example_inputs).labels
        if not labels.sizes and not labels.global_response_norms:
            raise
        return run(False)


def outputs(model: nn.Module, example_inputs: Inputs) -> list[Tensor]:
    """Every floating-point tensor that ``model`` returns in evaluation mode."""
    with evaluation_mode(model), torch.no_grad():
        return float_tensors(call(model, example_inputs))


def counted_outputs(model: nn.Module, example_inputs: Inputs) -> tuple[list[Tensor], int]:
    """The result of :func:`outputs`, and the FLOPs of that run."""
    found, flops = counted_run(model, example_inputs)
    return float_tensors(found), flops


def float_tensors(found: Any) -> list[Tensor]:
    """The floating-point tensors among the values that a network returned."""
    return [value for value in tree_leaves(found) if isinstance(value, Tensor) and value.is_floating_point()]


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest absolute difference between two lists of outputs, divided by the largest absolute expected element."""
    errors = []
    for left, right in zip(found, expected, strict=True):
        if left.shape != right.shape:
            return float("inf")
        scale = right[right.isfinite()].abs().amax() if bool(right.isfinite().any()) else right.new_ones(())
        difference = torch.where(left == right, 0.0, left - right).abs().max()  # equal infinities do not differ
        errors.append(float(difference / scale.clamp_min(torch.finfo(right.dtype).tiny)))
    return float(torch.tensor(errors).amax()) if errors else 0.0  # NaN if any is


def compare_shapes(before: dict[str, tuple], after: dict[str, tuple]) -> tuple[Change, ...]:
    """The tensors whose shapes differ."""
    names = dict.fromkeys((*before, *after))
    return tuple(
        Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    )


def _run(method: str, model: nn.Module, example_inputs: Inputs) -> tuple[list[Tensor], int]:
    try:
        return counted_outputs(model, example_inputs)
    except Exception as error:  # a network's own code may raise anything
        raise RewriteError(
            f"{method}: {type(model).__name__} does not run with its new shapes: {type(error).__name__}: {error}. The "
            "network is as it was before. A module probably repeats a size in a Python attribute or in its forward "
            "code."
        ) from error


def check_finite(method: str, model: nn.Module) -> None:
    """Raise ``ArgumentError`` if a parameter has NaN or infinity, or a buffer NaN: masks may have infinities."""
    wrong = [(name, "NaN or infinity") for name, value in model.named_parameters() if not bool(value.isfinite().all())]
    wrong += [(name, "NaN") for name, value in model.named_buffers() if bool(value.isnan().any())]
    for name, found in wrong[:1]:
        raise ArgumentError(
            f"{method}({type(model).__name__}): {name} holds {found}; expected finite weights. "
            "Load the last good checkpoint."
        )


def _check(method: str, model: nn.Module, expected: list[Tensor]) -> None:
    check_finite(method, model)
    if not expected:
        raise ArgumentError(f"{method}({type(model).__name__}): the network returns no floating-point tensor.")
    if any(bool(value.isnan().any()) for value in expected):
        raise ArgumentError(
            f"{method}({type(model).__name__}): the network returns NaN for the example inputs; expected numbers."
        )


def _norms(model: nn.Module) -> list[CompensatedNorm]:
    return [module for module in model.modules() if isinstance(module, CompensatedNorm)]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors: list[Any] = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in tensors}
