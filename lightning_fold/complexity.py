"""How large and how slow a network is: parameters, floating-point operations, seconds, bytes."""

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lightning_fold.structure.trace import Inputs, as_inputs, evaluation_mode, written_out


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of ``model``; tied parameters count once, buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, example_inputs: Inputs) -> int:
    """Floating-point operations of one forward pass: 2 for each multiply-add of matrix products and convolutions.

    Normalisation and activation functions are not counted, as in ``torch.utils.flop_counter``.

    Args:
        model: any module; it runs once in evaluation mode.
        example_inputs: a tensor, or a tuple of positional inputs, batch first; the whole batch counts.
    """
    return counted_run(model, example_inputs)[1]


def counted_run(model: nn.Module, example_inputs: Inputs) -> tuple[Any, int]:
    """What ``model`` returns in evaluation mode, without gradients, and its FLOPs as of :func:`count_flops`."""
    # Views of parameters that are trained make the counter fail, even without gradients: it gets none.
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with evaluation_mode(model), torch.no_grad(), written_out(), FlopCounterMode(display=False) as counter:
        found = functional_call(model, parameters, as_inputs(example_inputs))
    return found, int(counter.get_total_flops())


def measure_latency(model: nn.Module, example_inputs: Inputs, *, runs: int = 30, warmup: int = 5) -> float:
    """Median seconds of one forward pass in evaluation mode, on the device where ``model`` and inputs are.

    Args:
        model: any module.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        runs: timed passes, at least 1.
        warmup: passes before the first timed one, at least 0.

    Raises:
        ValueError: ``runs`` or ``warmup`` is out of range.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"measure_latency(runs={runs}, warmup={warmup}): expected runs >= 1 and warmup >= 0.")
    inputs = as_inputs(example_inputs)
    synchronize = _synchronizer(model)
    seconds = []
    with evaluation_mode(model), torch.inference_mode():
        for run in range(warmup + runs):
            synchronize()
            start = time.perf_counter()
            model(*inputs)
            synchronize()
            if run >= warmup:
                seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def count_bytes(model: nn.Module) -> int:
    """Bytes of the network's state dict as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def _synchronizer(model: nn.Module) -> Callable[[], None]:
    parameter = next(model.parameters(), None)
    return torch.cuda.synchronize if parameter is not None and parameter.is_cuda else lambda: None
