"""Read linear layers and convolutions as matrices, and build two layers that compute a product of two matrices."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs, call, device_of, inputs_of_batch, on_device, only_input
from lightning_fold.rewrites.calibration import precise
from lightning_fold.rewrites.observe import forward_pre_hooks
from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.surgery.optimizers import copied
from lightning_fold.surgery.origins import replaced_by

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BARE: dict[str, Any] = {"bias": False, "device": "meta"}  # draws no random numbers for weights that are overwritten


@dataclass(frozen=True)
class MatrixView:
    """One way to read a layer as a matrix.

    Attributes:
        path: dotted name of the layer.
        layer: the layer.
        matrix: (rows, columns) the weight.
        first: builds, from a (rank, columns) matrix, the layer that multiplies its rows with the layer's inputs.
        second: builds, from a (rows, rank) matrix, the layer that computes the outputs from these products.
    """

    path: str
    layer: Layer
    matrix: Tensor
    first: Callable[[Tensor], Layer]
    second: Callable[[Tensor], Layer]

    def pair(self, outer: Tensor, inner: Tensor) -> nn.Sequential:
        """Two layers that replace a layer of matrix ``outer @ inner``; the bias remains the same parameter."""
        weight = self.layer.weight
        pair = nn.Sequential(self.first(inner.to(weight)), self.second(outer.to(weight)))
        pair.train(self.layer.training).requires_grad_(weight.requires_grad)
        pair[1].register_parameter("bias", self.layer._parameters["bias"])
        return pair


def product(pair: nn.Module) -> Layer | None:
    """One layer equivalent to the two that :meth:`MatrixView.pair` built; ``None`` for other modules."""
    before = replaced_by(pair)
    if not isinstance(before, KINDS) or type(pair) is not nn.Sequential:
        return None
    if [type(layer) for layer in pair] != 2 * [type(before)]:
        return None
    first, second = cast(tuple[Layer, Layer], tuple(pair))
    if first.bias is not None or any(layer._forward_hooks or layer._forward_pre_hooks for layer in pair):
        return None
    inner, outer = first.weight.detach(), second.weight.detach()
    if isinstance(before, nn.Linear):
        layer: Any = nn.Linear(inner.shape[1], outer.shape[0], **_BARE)
        matrix = outer @ inner
    else:
        kind: Any = type(before)
        layer = kind(inner.shape[1], outer.shape[0], **_window(before), **_BARE)
        point = outer[0, 0].numel() == 1
        matrix = outer.flatten(1) @ inner.flatten(1) if point else torch.einsum("orxw,rihy->oihw", outer, inner)
    layer = _filled(layer, matrix, first).train(pair.training).requires_grad_(first.weight.requires_grad)
    layer.register_parameter("bias", second._parameters["bias"])
    return layer


def matrix_views(path: str, layer: Layer) -> list[MatrixView]:
    """The ways to read a layer: O x I; O x (I k ...); for k x k also (O k) x (I k), a k x 1 then a 1 x k layer."""
    if isinstance(layer, nn.Linear):
        return [_linear(path, layer)]
    whole = _whole_then_point(path, layer)
    if isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1:
        return [whole, _column_then_row(path, layer)]
    return [whole]


def reads_less(shape: MatrixView) -> bool:
    """Whether there are fewer columns than rows, so that the second moment of the inputs is smaller."""
    rows, columns = shape.matrix.shape
    return columns < rows


def moments_of(
    model: nn.Module, example_inputs: Inputs, batches: Iterable[Any], found: Sequence[MatrixView]
) -> dict[int, Tensor]:
    """Second moments in float64, by ``id`` of each view: of its outputs, or of its inputs if these are fewer.

    With M the matrix and C the second moment of its inputs, the second moment of its outputs is M C M^H. Views of
    layers that are not called on the batches are left out.

    Args:
        model: the network, run in evaluation mode.
        example_inputs: example inputs of the network.
        batches: batches of inputs, or (inputs, ...), or mappings.
        found: views of layers of the network.

    Raises:
        ArgumentError: there is no batch.
    """
    moments: dict[int, Tensor] = {}
    device = device_of(model)

    def observe(shape: MatrixView) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        matrix, columns = shape.matrix.detach(), shape.matrix.shape[1]
        first = shape.first(torch.eye(columns).to(matrix) if reads_less(shape) else matrix)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            products = first(only_input(args, kwargs))
            dim = -1 if isinstance(first, nn.Linear) else products.dim() - first.weight.dim() + 1
            rows = precise(products.movedim(dim, 0).flatten(1))
            product = (rows @ rows.mH).to(torch.promote_types(rows.dtype, torch.float64))
            moments[id(shape)] = moments.get(id(shape), 0) + product

        return hook

    hooks = ((shape.layer, observe(shape)) for shape in found)
    with torch.no_grad(), evaluation_mode(model), forward_pre_hooks(hooks):
        empty = True
        for batch in batches:
            call(model, on_device(inputs_of_batch(batch, example_inputs), device))
            empty = False
    if empty:
        raise ArgumentError("factorize(batches=...): there is no batch; expected at least one.")
    return moments


def _linear(path: str, layer: nn.Linear) -> MatrixView:
    def first(inner: Tensor) -> Layer:
        return _filled(nn.Linear(inner.shape[1], inner.shape[0], **_BARE), inner, layer)

    def second(outer: Tensor) -> Layer:
        return _filled(nn.Linear(outer.shape[1], outer.shape[0], **_BARE), outer, layer)

    return MatrixView(path, layer, layer.weight.detach(), first, second)


def _whole_then_point(path: str, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> MatrixView:
    kind: Any = type(layer)

    def first(inner: Tensor) -> Layer:
        return _filled(kind(layer.in_channels, len(inner), **_window(layer), **_BARE), inner, layer)

    def second(outer: Tensor) -> Layer:
        return _filled(kind(outer.shape[1], outer.shape[0], 1, **_BARE), outer, layer)

    return MatrixView(path, layer, layer.weight.detach().flatten(1), first, second)


def _column_then_row(path: str, layer: nn.Conv2d) -> MatrixView:
    rows, columns, height, width = layer.weight.shape
    pads = layer.padding
    up, across = ((pads[0], 0), (0, pads[1])) if not isinstance(pads, str) else (pads, pads)
    mode: Any = layer.padding_mode

    def first(inner: Tensor) -> Layer:
        steps: dict[str, Any] = {"stride": (layer.stride[0], 1), "dilation": (layer.dilation[0], 1)}
        conv = nn.Conv2d(columns, len(inner), (height, 1), padding=up, padding_mode=mode, **steps, **_BARE)
        return _filled(conv, inner, layer)

    def second(outer: Tensor) -> Layer:
        steps: dict[str, Any] = {"stride": (1, layer.stride[1]), "dilation": (1, layer.dilation[1])}
        rank = outer.shape[1]
        conv = nn.Conv2d(rank, rows, (1, width), padding=across, padding_mode=mode, **steps, **_BARE)
        return _filled(conv, outer.reshape(rows, width, rank).mT, layer)

    matrix = layer.weight.detach().permute(0, 3, 1, 2).reshape(rows * width, columns * height)
    return MatrixView(path, layer, matrix, first, second)


def _window(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}


def _filled(layer: Layer, matrix: Tensor, like: Layer) -> Layer:
    """``layer``, built without values, with the values of ``matrix`` in the memory format of ``like``."""
    layer.weight = nn.Parameter(copied(matrix.reshape(layer.weight.shape), like.weight))
    return layer
