"""What is known of the values inside a network: from batches, or without data from its own BatchNorms."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.rewrites.repair import estimate_statistics
from lightning_fold.structure.inputs import Inputs, call, inputs_of_batch, join_inputs, on_device, only_input
from lightning_fold.structure.trace import evaluation_mode

_MOST_EXAMPLES = 256
_MOST_ELEMENTS = 2_000_000  # of noise: 256 images of 3 x 32 x 32, 13 of 3 x 224 x 224


@dataclass(frozen=True)
class Calibration:
    """A copy of the dense network and inputs to run it on.

    Attributes:
        network: the dense network, in evaluation mode. Without data its BatchNorm statistics are those of ``inputs``,
            so that behind every BatchNorm mean and variance are the ones it promises, as they are on real data.
        inputs: what it is called with, batch first.
        held_out: inputs that nothing is estimated from; the same as ``inputs`` where there is one batch.
        real: whether the inputs are data.
        left_out: how many batches were left out, since their shapes do not go together with the first one's.
    """

    network: nn.Module
    inputs: Inputs
    held_out: Inputs
    real: bool
    left_out: int = 0


def from_batches(model: nn.Module, example_inputs: Inputs, batches: Iterable[Any]) -> Calibration:
    """Calibrate on the batches that differ from the first in their size alone: the last is held out, the others joined.

    Raises:
        ValueError: there is no batch, or none with as many inputs as ``example_inputs``.
    """
    device = next(model.parameters()).device
    parts = [on_device(inputs_of_batch(batch, example_inputs), device) for batch in batches]
    if not parts:
        raise ValueError("batches=[]: expected at least one batch of inputs, or of (inputs, ...).")
    fitting = [part for part in parts if join_inputs([parts[0], part]) is not None]
    inputs = join_inputs(fitting[:-1] or fitting)
    assert inputs is not None, "what goes together with the first goes together"
    left_out = len(parts) - len(fitting)
    return Calibration(deepcopy(model).eval(), inputs, fitting[-1], real=True, left_out=left_out)


def from_noise(model: nn.Module, example_inputs: Inputs, seed: int = 0) -> Calibration:
    """Calibrate without data: noise in the shape of the inputs, and BatchNorm statistics to match.

    Behind a BatchNorm every channel then has the mean and variance that beta and gamma say; how channels go together
    follows from the weights. Noise for images has the 1/f spectrum of natural ones. Integer inputs stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    given, leaves = example_inputs, tree_leaves(example_inputs)
    if all(isinstance(value, Tensor) and value.is_floating_point() and value.dim() for value in leaves):
        size = sum(value[:1].numel() for value in leaves)
        examples = max(2, min(_MOST_EXAMPLES, _MOST_ELEMENTS // size))
        given = tree_map(lambda value: _noise(value, examples, generator), example_inputs)
    network = deepcopy(model).eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if norms:
        estimate_statistics(network, [given])
    return Calibration(network, given, given, real=False)


def _noise(like: Tensor, examples: int, generator: torch.Generator) -> Tensor:
    white = torch.randn(examples, *like.shape[1:], generator=generator)
    if white.dim() == 4:
        rows, columns = (torch.fft.fftfreq(size) for size in white.shape[-2:])
        frequency = (rows[:, None].square() + columns.square()).sqrt().clamp_min(1 / max(white.shape[-2:]))
        white = torch.fft.ifft2(torch.fft.fft2(white) / frequency).real
        white = white / white.std()
    return white.to(like)


def second_moments(calibration: Calibration, paths: Iterable[str]) -> dict[str, Tensor]:
    """(channels, channels) E[x x^T] at the input of each linear layer or convolution, float64.

    Args:
        calibration: network and inputs.
        paths: dotted names of the layers; convolutions read channels in dimension 1, others in the last.
    """
    return _read(calibration, paths, lambda rows: (rows.T @ rows).double().cpu() / len(rows))


def mean_squares(calibration: Calibration, paths: Iterable[str]) -> dict[str, Tensor]:
    """(channels,) E[x^2] in the same places: the diagonal of :func:`second_moments`."""
    return _read(calibration, paths, lambda rows: rows.square().mean(0).double().cpu())


def _read(calibration: Calibration, paths: Iterable[str], measure: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What ``measure`` says of the inputs of each layer, (places, channels)."""
    found: dict[str, Tensor] = {}

    def keep(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = only_input(args, kwargs).detach()
            rows = value.movedim(-1 if isinstance(module, nn.Linear) else 1, -1).reshape(-1, _channels(module, value))
            found[path] = measure(rows)

        return hook

    layers = {path: calibration.network.get_submodule(path) for path in paths}
    handles = [layer.register_forward_pre_hook(keep(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        with evaluation_mode(calibration.network), torch.no_grad():
            call(calibration.network, calibration.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def relative_squared_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Squared error of outputs, relative to how much they vary over the examples; infinite where it is NaN."""
    error = sum(
        float((left.double() - right.double()).square().sum()) for left, right in zip(found, expected, strict=True)
    )
    spread = sum(float((right.double() - right.double().mean(0)).square().sum()) for right in expected)
    ratio = error / max(spread, torch.finfo(torch.float64).tiny)
    return ratio if ratio == ratio else float("inf")


def _channels(module: nn.Module, value: Tensor) -> int:
    return value.shape[-1 if isinstance(module, nn.Linear) else 1]
