"""Least squares: fit a layer's weights so that, on its new inputs, it best matches the dense network's outputs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fold.inputs import call, only_input
from lightning_fold.rewrites.calibration import Calibration, precise
from lightning_fold.rewrites.channels.consumers import Consumer
from lightning_fold.rewrites.observe import forward_hooks, forward_pre_hooks
from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.surgery.editor import NetworkEditor

_FEWEST_ROWS = 16384
_ROWS_PER_COLUMN = 32
_RIDGE = 1e-3
_CHUNK = 32


@dataclass(frozen=True)
class Correction:
    """The terms added to the weight of a layer and to its output."""

    weight: Tensor | None
    shift: Tensor


def refit(
    calibration: Calibration,
    compressed: nn.Module,
    consumers: Iterable[Consumer],
    rows: dict[str, Tensor],
    *,
    weights: bool = True,
) -> dict[str, Correction]:
    """Fit the weights of ``consumers`` one after the other, in one pass over the calibration inputs.

    Each layer sees the outputs of the already fitted layers before it; its target is the output of the same layer in
    the dense network. Let X be the inputs (one row per position, one column per weight of an output), and R the missing
    outputs: the correction is R^T X (X^T X + ridge)^-1, with X and R centred if the layer has a bias or a BatchNorm
    that can absorb the mean.

    Args:
        calibration: the dense network and inputs.
        compressed: the network without the removed channels; its weights are changed.
        consumers: the layers to fit.
        rows: for each path, the matrix (rows left, rows) that maps the dense layer's outputs to the target.
        weights: whether to fit the weights, or only the biases.

    Returns:
        The correction for each path.
    """
    dense, consumers, small = calibration.network, list(consumers), NetworkEditor(compressed)
    targets: dict[str, tuple[Tensor, Tensor]] = {}
    corrections: dict[str, Correction] = {}

    def remember(consumer: Consumer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            flat = _channels_last(module, output).flatten(0, -2)
            places = _places(len(flat), module.weight[0].numel())  # pyright: ignore[reportIndexIssue, reportCallIssue]
            wanted = precise(flat[places])
            targets[consumer.path] = places, wanted @ rows[consumer.path].T.to(wanted)

        return hook

    def solve(consumer: Consumer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert isinstance(module, (nn.Linear, nn.Conv2d))
            places, target = targets.pop(consumer.path)
            given = precise(_input_rows(module, only_input(args, kwargs), places))
            found = _solve(module, given, target, consumer.sink is not None, weights)
            corrections[consumer.path] = found
            with torch.no_grad():
                if found.weight is not None:
                    module.weight += found.weight
                if consumer.sink is not None:
                    small.tensor(consumer.sink.tensor).add_(consumer.sink.sign * found.shift)

        return hook

    inputs = calibration.examples()
    for network, hooks, hook in ((dense, forward_hooks, remember), (compressed, forward_pre_hooks, solve)):
        watched = [(network.get_submodule(consumer.path), hook(consumer)) for consumer in consumers]
        with hooks(watched), evaluation_mode(network), torch.no_grad():
            call(network, inputs)
    return corrections


def _solve(module: nn.Linear | nn.Conv2d, inputs: Tensor, target: Tensor, centred: bool, weights: bool) -> Correction:
    weight = module.weight.detach().flatten(1).to(inputs)
    missing = target - inputs @ weight.T
    if module.bias is not None:
        missing = missing - module.bias.detach()
    mean = inputs.mean(0) if centred else torch.zeros_like(inputs[0])
    offset = missing.mean(0) if centred else torch.zeros_like(missing[0])
    if not weights:
        return Correction(None, offset)
    inputs, missing = inputs - mean, missing - offset
    change = _ridge_regression(inputs, missing)
    return Correction(change.reshape(module.weight.shape).to(weight), (offset - change.to(mean) @ mean).to(weight))


def _ridge_regression(inputs: Tensor, missing: Tensor) -> Tensor:
    """R^T X (X^T X + ridge)^-1, computed as R^T (X X^T + ridge)^-1 X if there are fewer positions than columns."""
    few = len(inputs) < inputs.shape[1]
    moments = (inputs @ inputs.T if few else inputs.T @ inputs).double()
    ridge = (_RIDGE * moments.trace() / inputs.shape[1]).clamp_min(torch.finfo(moments.dtype).tiny)
    moments.diagonal().add_(ridge)
    if few:
        return torch.linalg.solve(moments, missing.double()).T @ inputs.double()
    return torch.linalg.solve(moments, (inputs.T @ missing).double()).T


def _places(total: int, columns: int) -> Tensor:
    """Random positions in order, enough to fit a layer with this many columns."""
    most = max(_FEWEST_ROWS, _ROWS_PER_COLUMN * columns)
    if total <= most:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:most].sort().values


def _channels_last(module: nn.Module, value: Tensor) -> Tensor:
    return value if isinstance(module, nn.Linear) else value.movedim(1, -1)


def _input_rows(module: nn.Linear | nn.Conv2d, value: Tensor, places: Tensor) -> Tensor:
    """(places, columns) the inputs of each output position in ``places``."""
    if isinstance(module, nn.Linear):
        return value.flatten(0, -2)[places.to(value.device)]
    found, start = [], 0
    for chunk in value.split(_CHUNK):
        windows = _windows(module, chunk)
        images, each = windows.shape[:2]
        inside = (places[(places >= start) & (places < start + images * each)] - start).to(windows.device)
        found.append(windows[inside // each, inside % each])  # copies only these windows
        start += images * each
    return torch.cat(found)


def _windows(module: nn.Conv2d, value: Tensor) -> Tensor:
    """(images, places, columns) the inputs of each output position of each image."""
    if isinstance(module.padding, str):
        value = F.pad(value, module._reversed_padding_repeated_twice)
    padding = (0, 0) if isinstance(module.padding, str) else module.padding
    unfolded = F.unfold(value, module.kernel_size, module.dilation, padding, module.stride)
    return unfolded.transpose(1, 2)
