"""How a linear layer or convolution is read as a matrix, and how two layers compute a product of two matrices."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.rewrites.calibration import precise
from lightning_fold.structure.inputs import Inputs, call, device_of, inputs_of_batch, on_device, only_input
from lightning_fold.structure.trace import evaluation_mode

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Shape:
    """One way to read a layer as a matrix.

    Attributes:
        path: dotted name of the layer.
        layer: the layer.
        matrix: (rows, columns) its weight.
        first: the layer that computes the products of the rows of a (rank, columns) matrix with what the layer reads.
        second: the layer that computes the outputs from them, given a (rows, rank) matrix.
    """

    path: str
    layer: Layer
    matrix: Tensor
    first: Callable[[Tensor], Layer]
    second: Callable[[Tensor], Layer]

    def pair(self, outer: Tensor, inner: Tensor) -> nn.Sequential:
        """Two layers in the place of the layer whose matrix is ``outer @ inner``; the bias stays the same parameter."""
        weight = self.layer.weight
        pair = nn.Sequential(self.first(inner.to(weight)), self.second(outer.to(weight)))
        pair.train(self.layer.training).requires_grad_(weight.requires_grad)
        pair[1].register_parameter("bias", self.layer._parameters["bias"])
        return pair


def shapes(path: str, layer: Layer) -> list[Shape]:
    """The ways to read a layer: O x I; O x (I k ...); for k x k also (O k) x (I k), a k x 1 before a 1 x k layer."""
    if isinstance(layer, nn.Linear):
        return [_linear(path, layer)]
    whole = _whole_then_point(path, layer)
    if isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1:
        return [whole, _column_then_row(path, layer)]
    return [whole]


def output_moments(
    model: nn.Module, example_inputs: Inputs, batches: Iterable[Any], found: Sequence[Shape]
) -> dict[int, Tensor]:
    """M C M^H by ``id`` of each shape, M its matrix and C the second moment of what its columns read.

    That is the second moment of the outputs of the first layer when it gets the whole matrix.

    Args:
        model: the network, run in evaluation mode.
        example_inputs: what the network is called with.
        batches: batches of inputs, or (inputs, ...), or mappings.
        found: shapes of layers of the network.

    Raises:
        ValueError: there is no batch.
    """
    moments = {id(shape): torch.zeros((), dtype=torch.float64) for shape in found}
    device = device_of(model)

    def observe(shape: Shape) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        first = shape.first(shape.matrix.detach())

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            products = first(only_input(args, kwargs))
            dim = -1 if isinstance(first, nn.Linear) else products.dim() - first.weight.dim() + 1
            rows = precise(products.movedim(dim, 0).flatten(1))
            product = rows @ rows.mH
            moments[id(shape)] = moments[id(shape)].to(device) + product.to(
                torch.promote_types(product.dtype, torch.float64)
            )

        return hook

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluation_mode(model))
        for shape in found:
            handle = shape.layer.register_forward_pre_hook(observe(shape), with_kwargs=True)
            stack.callback(handle.remove)
        empty = True
        for batch in batches:
            call(model, on_device(inputs_of_batch(batch, example_inputs), device))
            empty = False
    if empty:
        raise ValueError("factorize(batches=...): there is no batch; expected at least one.")
    return moments


@dataclass
class Use:
    """What the network does with a layer in one forward pass in evaluation mode.

    Attributes:
        calls: what it is called with, each time.
        read: attributes of it that other code reads, and that two layers in its place would not have.
    """

    calls: list[Inputs] = field(default_factory=list)
    read: list[str] = field(default_factory=list)


def find_uses(model: nn.Module, example_inputs: Inputs, layers: Iterable[nn.Module]) -> dict[nn.Module, Use]:
    """How each layer is used.

    Observed without hooks: with some ``nn.TransformerEncoderLayer`` leaves its fast path, which reads weights.
    """
    uses = {layer: Use() for layer in layers}
    with evaluation_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"), ExitStack() as stack:
        for layer, use in uses.items():
            stack.enter_context(_watched(layer, use))
        call(model, example_inputs)
    return uses


@contextmanager
def _watched(layer: nn.Module, use: Use) -> Iterator[None]:
    """Note what is done with ``layer`` inside the block."""
    kind, pair, inside = type(layer), nn.Sequential(), False

    def observed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        use.calls.append(kwargs or args)
        inside = True  # what it reads of itself is no other code's
        try:
            return forward(*args, **kwargs)
        finally:
            inside = False

    class Watched(kind):
        def __getattribute__(self, name: str) -> Any:
            if not inside and not hasattr(pair, name):
                use.read.append(name)
            found = super().__getattribute__(name)
            return partial(observed, found) if name == "forward" else found

    layer.__class__ = Watched
    try:
        yield
    finally:
        layer.__class__ = kind


def _linear(path: str, layer: nn.Linear) -> Shape:
    def first(inner: Tensor) -> Layer:
        return _filled(nn.Linear(inner.shape[1], inner.shape[0], bias=False), inner)

    def second(outer: Tensor) -> Layer:
        return _filled(nn.Linear(outer.shape[1], outer.shape[0], bias=layer.bias is not None), outer)

    return Shape(path, layer, layer.weight.detach(), first, second)


def _whole_then_point(path: str, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Shape:
    kind: Any = type(layer)
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    window = {name: getattr(layer, name) for name in names}

    def first(inner: Tensor) -> Layer:
        return _filled(kind(layer.in_channels, len(inner), **window, bias=False), inner)

    def second(outer: Tensor) -> Layer:
        return _filled(kind(outer.shape[1], outer.shape[0], 1, bias=layer.bias is not None), outer)

    return Shape(path, layer, layer.weight.detach().flatten(1), first, second)


def _column_then_row(path: str, layer: nn.Conv2d) -> Shape:
    rows, columns, height, width = layer.weight.shape
    pads = layer.padding
    up, across = ((pads[0], 0), (0, pads[1])) if not isinstance(pads, str) else (pads, pads)
    mode: Any = layer.padding_mode

    def first(inner: Tensor) -> Layer:
        steps: dict[str, Any] = {"stride": (layer.stride[0], 1), "dilation": (layer.dilation[0], 1)}
        conv = nn.Conv2d(columns, len(inner), (height, 1), padding=up, padding_mode=mode, bias=False, **steps)
        return _filled(conv, inner)

    def second(outer: Tensor) -> Layer:
        steps: dict[str, Any] = {"stride": (1, layer.stride[1]), "dilation": (1, layer.dilation[1])}
        bias, rank = layer.bias is not None, outer.shape[1]
        conv = nn.Conv2d(rank, rows, (1, width), padding=across, padding_mode=mode, bias=bias, **steps)
        return _filled(conv, outer.reshape(rows, width, rank).mT)

    matrix = layer.weight.detach().permute(0, 3, 1, 2).reshape(rows * width, columns * height)
    return Shape(path, layer, matrix, first, second)


def _filled(layer: Layer, matrix: Tensor) -> Layer:
    values = matrix.reshape(layer.weight.shape).clone(memory_format=torch.contiguous_format)
    layer.weight = nn.Parameter(values)
    return layer
