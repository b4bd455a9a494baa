"""release: replace the zeros left in dense tensors by small trainable noise."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lightning_fold.complexity import count_parameters
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs, call, inputs_for
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.sparsity.sparsify import prunable_weights
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.surgery.transaction import Surgery

_BISECTIONS = 12


@on_network
def release(
    model: nn.Module,
    *,
    max_drift: float = 0.01,
    batches: Iterable[Any] | None = None,
    example_inputs: Inputs | None = None,
    seed: int = 0,
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Replace the exact zeros of ``model``'s weights, in place, by trainable noise N(0, (a s)^2).

    s is the root mean square of the tensor's non-zero weights. Biases and normalisation parameters are not changed.
    Optimizer state of the surviving weights is kept; for the released ones it is set to zero.

    Source: "Squeeze-Release" (arXiv 2606.14346); the noise rule is this project's own.

    Args:
        model: any network.
        max_drift: with ``batches``, the largest change of the outputs, as the norm of the change over the norm of the
            outputs; bisection finds the amplitude a (at most 1). Without ``batches``, a itself. In [0, 1].
        batches: batches of data: inputs, tuples (inputs, ...) that start with the network's inputs, or mappings; the
            drift is measured on all of them in evaluation mode.
        example_inputs: example inputs of the network, which show how many elements, or which names, it reads from a
            batch; needed only for networks with optional inputs.
        seed: seed of the noise.
        optimizers: optimizers of the network.

    Returns:
        A report with the number of parameters, which does not change.

    Raises:
        ArgumentError: ``max_drift`` is out of range, or ``batches`` is empty.
    """
    if not 0 <= max_drift <= 1:
        raise ArgumentError(f"release(max_drift={max_drift}): expected a share in [0, 1], for example max_drift=0.01.")
    inputs = None if batches is None else [inputs_for(model, batch, example_inputs) for batch in batches]
    if inputs == []:
        raise ArgumentError("release(batches=[]): expected at least one batch of inputs, or of (inputs, ...).")
    weights, generator = prunable_weights(model), torch.Generator().manual_seed(seed)
    noise = {name: _noise(weight, generator) for name, weight in weights.items()}
    amplitude = max_drift if inputs is None else _amplitude(model, noise, max_drift, inputs)
    with Surgery(model, optimizers) as surgery:
        for name, weight in weights.items():
            survived = weight != 0
            if not bool(survived.all()):
                value = amplitude * noise[name]
                surgery.transform(name, lambda w, n=value: w + n, moments=lambda m, keep=survived: m * keep)
    parameters = count_parameters(model)
    return RewriteReport("release", parameters, parameters)


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    zero = weight == 0
    survivors = weight.numel() - int(zero.sum())
    over_heads = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))  # the sum overflows 16-bit types
    rms = over_heads.square().sum().div(max(survivors, 1)).sqrt()
    noise = torch.randn(weight.shape, generator=generator).to(over_heads) * rms
    return torch.where(zero, noise, 0).to(weight.dtype)


def _amplitude(model: nn.Module, noise: dict[str, Tensor], max_drift: float, batches: list[Inputs]) -> float:
    """The largest amplitude in [0, 1], found by bisection, whose drift is within ``max_drift``."""
    parameters = dict(model.named_parameters())

    def drift(amplitude: float) -> float:
        moved = {name: parameters[name] + amplitude * noise[name] for name in noise}
        found = _outputs(model, moved, batches)
        return float((found - expected).norm() / expected.norm().clamp_min(torch.finfo(expected.dtype).tiny))

    with evaluation_mode(model), torch.no_grad():
        expected = _outputs(model, {}, batches)
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if drift(middle) <= max_drift else (low, middle)
    return low


def _outputs(model: nn.Module, replaced: dict[str, Tensor], batches: list[Inputs]) -> Tensor:
    found = [value for batch in batches for value in tree_leaves(call(model, batch, replaced))]
    return torch.cat([value.flatten() for value in found if isinstance(value, Tensor) and value.is_floating_point()])
