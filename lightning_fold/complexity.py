"""Size and speed of a network: parameters, floating-point operations, latency, bytes."""

import io
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs, call
from lightning_fold.structure.graph.trace import evaluation_mode, without_fast_paths


def count_parameters(model: nn.Module) -> int:
    """Number of parameters of ``model``; tied parameters count once, buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, example_inputs: Inputs) -> int:
    """Floating-point operations of one forward pass: 2 for each multiply-add of matrix products and convolutions.

    Normalisation and activation functions are not counted, as in ``torch.utils.flop_counter``.

    Args:
        model: any module; it runs once in evaluation mode.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first; the
            FLOPs are those of the whole batch.
    """
    return counted_run(model, example_inputs)[1]


def counted_run(model: nn.Module, example_inputs: Inputs) -> tuple[Any, int]:
    """The output of ``model`` in evaluation mode, without gradients, and its FLOPs as in :func:`count_flops`."""
    # The counter fails on views of trainable parameters, even without gradients, so the parameters are detached.
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    # Attention runs as matrix products: some versions of torch do not count fused attention on every device.
    plain = sdpa_kernel(SDPBackend.MATH)
    with (
        evaluation_mode(model),
        torch.no_grad(),
        without_fast_paths(),
        plain,
        FlopCounterMode(display=False) as counter,
    ):
        found = call(model, example_inputs, parameters)
    return found, int(counter.get_total_flops())


class Latency(float):
    """Median seconds of one forward pass, together with the conditions of the measurement.

    Attributes:
        device: name of the device, for example "cpu" or "NVIDIA H100".
        dtype: type of the first floating-point parameter, for example "float32".
        batch: examples in one pass.
        threads: threads that torch may use on the CPU.
        runs: number of timed passes.
    """

    device: str
    dtype: str
    batch: int
    threads: int
    runs: int

    def __new__(cls, seconds: float, *, device: str, dtype: str, batch: int, threads: int, runs: int) -> "Latency":
        """Store the conditions of the measurement with the time."""
        latency = super().__new__(cls, seconds)
        vars(latency).update(device=device, dtype=dtype, batch=batch, threads=threads, runs=runs)
        return latency

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        return (float(self),), self.conditions()

    def conditions(self) -> dict[str, Any]:
        """The conditions of the measurement, as plain values."""
        return dict(vars(self))

    def __str__(self) -> str:
        return (
            f"{1000 * self:.3f} ms (median of {self.runs} runs, batch {self.batch}, {self.dtype}, {self.device}, "
            f"threads: {self.threads})"
        )


def measure_latency(model: nn.Module, example_inputs: Inputs, *, runs: int = 30, warmup: int = 5) -> Latency:
    """Median seconds of one forward pass in evaluation mode, on the device of ``model`` and its inputs.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.
        runs: number of timed passes, at least 1.
        warmup: passes before the first timed one, at least 0.

    Raises:
        ArgumentError: ``runs`` or ``warmup`` is out of range.
    """
    if runs < 1 or warmup < 0:
        raise ArgumentError(f"measure_latency(runs={runs}, warmup={warmup}): expected runs >= 1 and warmup >= 0.")
    inputs = tree_leaves(example_inputs)
    tensors = [value for value in (*model.parameters(), *inputs) if isinstance(value, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    seconds = []
    with evaluation_mode(model), torch.inference_mode():
        for run in range(warmup + runs):
            _synchronize(device)
            start = time.perf_counter()
            call(model, example_inputs)
            _synchronize(device)
            if run >= warmup:
                seconds.append(time.perf_counter() - start)
    return Latency(
        statistics.median(seconds),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(next((t.dtype for t in tensors if t.is_floating_point()), "none")).removeprefix("torch."),
        batch=next((value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()), 1),
        threads=torch.get_num_threads(),
        runs=runs,
    )


def arrived_saving(flops: tuple[int, int], seconds: tuple[float, float]) -> float | None:
    """How much of a saving in operations becomes a saving in time.

    Args:
        flops: floating-point operations before and after.
        seconds: latency before and after.

    Returns:
        (1 - t_after / t_before) / (1 - f_after / f_before): 1 if time falls in proportion to the operations, 0 if it
        does not change, negative if it rises; ``None`` if no operations were saved.
    """
    saved = 1 - flops[1] / max(flops[0], 1)
    return (1 - seconds[1] / seconds[0]) / saved if saved > 0 else None


def count_bytes(model: nn.Module) -> int:
    """Bytes of the network's state dict as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
