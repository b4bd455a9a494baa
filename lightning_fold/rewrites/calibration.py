"""Calibration: statistics of the values inside a network, from batches or, without data, from its BatchNorms."""

from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_fold.class_paths import resolve
from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.inputs import (
    Inputs,
    batch_size,
    call,
    device_of,
    first_examples,
    inputs_of_batch,
    is_batched,
    join_inputs,
    on_device,
    only_input,
)
from lightning_fold.rewrites.observe import forward_pre_hooks
from lightning_fold.rewrites.repair import estimate_statistics
from lightning_fold.structure.graph.trace import evaluation_mode

_MOST_EXAMPLES = 256
_CHUNK = 128  # examples; small batches are joined up to this size
_MOST_ELEMENTS = 2_000_000  # of noise: 256 images of 3 x 32 x 32, 13 of 3 x 224 x 224


@dataclass(frozen=True)
class Calibration:
    """A copy of the dense network and inputs to run it on.

    Attributes:
        network: the dense network, in evaluation mode. Without data its BatchNorm statistics are estimated on
            ``batches``, so the output of every BatchNorm has the mean and variance that its parameters promise, as on
            real data.
        batches: the inputs to call it with, one after the other, batch first.
        held_out: inputs that nothing is estimated from; if there is only one batch, that batch.
        real: whether the inputs are data.
        left_out: number of batches that were left out because their shapes do not match the first batch.
    """

    network: nn.Module
    batches: list[Inputs]
    held_out: Inputs
    real: bool
    left_out: int = 0

    def examples(self, count: int | None = None) -> Inputs:
        """The first ``count`` examples, or all of them, as one batch."""
        if count is None:
            return _joined(self.batches)
        sizes = [batch_size(batch) for batch in self.batches]
        needed = next((i for i in range(1, len(sizes)) if sum(sizes[:i]) >= count), len(sizes))
        return first_examples(_joined(self.batches[:needed]), count)


def from_batches(model: nn.Module, example_inputs: Inputs, batches: Iterable[Any]) -> Calibration:
    """Calibrate on the batches whose shapes match the first, whatever their size; hold out the last, join small ones.

    Raises:
        ArgumentError: there is no batch, or a batch lacks an input or has NaN or infinity.
    """
    device = device_of(model)
    parts = [on_device(inputs_of_batch(batch, example_inputs), device) for batch in batches]
    if not parts:
        raise ArgumentError("batches=[]: expected at least one batch of inputs, or of (inputs, ...).")
    fitting = [part for part in parts if join_inputs([parts[0], part]) is not None]
    chunks = [_joined(chunk) for chunk in _chunks(fitting[:-1] or fitting)]
    left_out = len(parts) - len(fitting)
    return Calibration(deepcopy(model).eval(), chunks, fitting[-1], real=True, left_out=left_out)


def _chunks(batches: list[Inputs]) -> list[list[Inputs]]:
    """Group batches, in order, into chunks of at least _CHUNK examples: fewer give no reliable statistics."""
    chunks, size = [[]], 0
    for batch in batches:
        if size >= _CHUNK:
            chunks, size = [*chunks, []], 0
        chunks[-1].append(batch)
        size += batch_size(batch)
    return chunks if size >= _CHUNK or len(chunks) == 1 else [*chunks[:-2], chunks[-2] + chunks[-1]]


def _joined(batches: list[Inputs]) -> Inputs:
    joined = join_inputs(batches)
    assert joined is not None, "batches that fit the first fit each other"
    return joined


def from_noise(model: nn.Module, example_inputs: Inputs, seed: int = 0) -> Calibration:
    """Calibrate without data: noise in the shape of the inputs, and BatchNorm statistics to match.

    The output of every BatchNorm then has the mean and variance given by beta and gamma; correlations between channels
    follow from the weights. Noise for images has the 1/f spectrum of natural images. Integer inputs and inputs without
    a batch dimension, such as masks, are used as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    given, size = example_inputs, batch_size(example_inputs)
    batched = [value for value in tree_leaves(example_inputs) if is_batched(value, size)]
    if batched and all(value.is_floating_point() for value in batched):
        examples = max(2, min(_MOST_EXAMPLES, _MOST_ELEMENTS // sum(value[:1].numel() for value in batched)))
        make = lambda value: _noise(value, examples, generator) if is_batched(value, size) else value  # noqa: E731
        given = tree_map(make, example_inputs)
    network = deepcopy(model).eval()
    if batch_size(given) > 1:  # one example has no variance: keep the statistics from training
        estimate_statistics(network, [given])
    return Calibration(network, [given], given, real=False)


def _noise(like: Tensor, examples: int, generator: torch.Generator) -> Tensor:
    white = torch.randn(examples, *like.shape[1:], generator=generator)
    if white.dim() == 4:
        rows, columns = (torch.fft.fftfreq(size) for size in white.shape[-2:])
        frequency = (rows[:, None].square() + columns.square()).sqrt().clamp_min(1 / max(white.shape[-2:]))
        white = torch.fft.ifft2(torch.fft.fft2(white) / frequency).real
        white = white / white.std()
    return white.to(like)


@dataclass
class LazyCalibration:
    """A calibration that is made on first use."""

    model: nn.Module
    example_inputs: Inputs
    batches: list[Any] | None
    seed: int = 0
    source: "CalibrationSource | None" = None  # default: batches, or noise without them

    def get(self) -> Calibration:
        """The calibration, always the same one; made from the network as it is at the first call."""
        return self._made

    def notes(self) -> list[str]:
        """Notes for the report; none before the calibration is made."""
        left_out = self._made.left_out if "_made" in vars(self) else 0
        if not left_out:
            return []
        found = f"{left_out} of {len(self.batches or ())} batches"
        return [f"{found} were left out: their inputs do not have the shapes of the first batch"]

    @cached_property
    def _made(self) -> Calibration:
        make = self.source or from_batches_or_noise
        return make(self.model, self.example_inputs, self.batches, self.seed)


class CalibrationSource(Protocol):
    """A source of calibrations: a function, or a callable object."""

    def __call__(
        self, model: nn.Module, example_inputs: Inputs, batches: list[Any] | None, seed: int, /
    ) -> Calibration:
        """Return a calibration with a copy of ``model``; :func:`from_batches` makes one from any inputs."""
        ...


def from_batches_or_noise(
    model: nn.Module, example_inputs: Inputs, batches: list[Any] | None, seed: int
) -> Calibration:
    """Calibrate on the batches, or on noise if there are none."""
    if batches is None:
        return from_noise(model, example_inputs, seed)
    return from_batches(model, example_inputs, batches)


def from_noise_always(model: nn.Module, example_inputs: Inputs, batches: list[Any] | None, seed: int) -> Calibration:
    """Calibrate on noise; ignore the batches."""
    return from_noise(model, example_inputs, seed)


# The values of the argument ``calibration``; add a line here to add a source.
CALIBRATIONS = {
    "auto": "lightning_fold.rewrites.calibration.from_batches_or_noise",
    "noise": "lightning_fold.rewrites.calibration.from_noise_always",
}


def calibration_source(call: str, calibration: str | CalibrationSource) -> CalibrationSource:
    """The calibration source for a name, a class path or a callable.

    Raises:
        ArgumentError: the name is unknown, or there is no such class or function.
        ArgumentTypeError: the source is not callable.
    """
    found = resolve(call, "calibration", calibration, CALIBRATIONS) if isinstance(calibration, str) else calibration
    if not callable(found):
        raise ArgumentTypeError(
            f"{call}(calibration={calibration!r}): expected a name, or a function of network, example inputs, batches "
            f"and seed, found a {type(found).__name__}."
        )
    return cast(CalibrationSource, found)


def second_moments(calibration: Calibration, paths: Iterable[str]) -> dict[str, Tensor]:
    """(channels, channels) E[x x^T] at the input of each linear layer or convolution, float64.

    Args:
        calibration: network and inputs.
        paths: dotted names of the layers; convolutions read channels in dimension 1, others in the last.
    """
    return _mean(calibration, paths, lambda rows: rows.T @ rows)


def mean_squares(calibration: Calibration, paths: Iterable[str]) -> dict[str, Tensor]:
    """(channels,) E[x^2] at the input of each layer: the diagonal of :func:`second_moments`."""
    return _mean(calibration, paths, lambda rows: rows.square().sum(0))


def _mean(calibration: Calibration, paths: Iterable[str], total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The mean over all input rows of each layer; ``total`` maps rows (positions, channels) to their sum."""
    sums: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = only_input(args, kwargs).detach()
            rows = value.movedim(-1 if isinstance(module, nn.Linear) else 1, -1).reshape(-1, _channels(module, value))
            sums[path] = sums.get(path, 0) + total(precise(rows)).double().cpu()
            counts[path] += len(rows)

        return hook

    network = calibration.network
    hooks = [(network.get_submodule(path), keep(path)) for path in dict.fromkeys(paths)]
    with forward_pre_hooks(hooks), evaluation_mode(network), torch.no_grad():
        for batch in calibration.batches:
            call(network, batch)
    return {path: found / counts[path] for path, found in sums.items()}


def relative_squared_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Squared error of the outputs divided by their variation over the examples; infinite if it is NaN.

    With a single example it is divided by the squared size of the outputs.
    """
    error = sum(
        float((left.double() - right.double()).square().sum()) for left, right in zip(found, expected, strict=True)
    )
    centre = lambda right: right.mean(0) if right.dim() and len(right) > 1 else 0.0  # noqa: E731
    spread = sum(float((right - centre(right)).square().sum()) for right in map(Tensor.double, expected))
    ratio = error / max(spread, torch.finfo(torch.float64).tiny)
    return ratio if ratio == ratio else float("inf")


def precise(value: Tensor) -> Tensor:
    """``value`` in at least single precision: sums of products overflow in half precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _channels(module: nn.Module, value: Tensor) -> int:
    return value.shape[-1 if isinstance(module, nn.Linear) else 1]
