"""factorize: linear layers and convolutions become two of low rank, by singular value decomposition."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.complexity import count_parameters
from lightning_fold.report import Kept, RewriteReport
from lightning_fold.rewrites.transaction import rewrite
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.structure.trace import Inputs
from lightning_fold.surgery import Surgery

_BISECTIONS = 60


@on_network
def factorize(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    keep_parameters: float = 0.3,
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Replace linear layers and convolutions of ``model``, in place, by two layers of low rank each.

    A linear layer becomes two. A k x k convolution becomes k x k to r channels then 1 x 1, or k x 1 then 1 x k,
    whichever keeps more energy for the same parameters. The ranks are allocated over the whole network: singular
    values with the most energy (as a share of their layer's) per parameter come first. A layer whose factors would
    not be smaller is left alone.

    Source: the compressor of "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469); shapes and allocation
    are this project's own.

    Args:
        model: any network with at least one linear layer or convolution inside.
        example_inputs: a tensor, or a tuple of positional inputs, batch first.
        keep_parameters: share of the network's parameters to keep, in (0, 1].
        optimizers: optimizers of the network; factors start without moments in the parameter group of their layer, the
            bias stays the same parameter.

    Raises:
        ValueError: ``keep_parameters`` is out of range, there is no layer to factorize, or the share cannot be reached.
        RewriteError: the network does not run afterwards; everything is as it was before.
    """
    if not 0 < keep_parameters <= 1:
        raise ValueError(f"factorize(keep_parameters={keep_parameters}): expected a share in (0, 1], for example 0.3.")
    layers = [layer for name, module in _layers(model) if (layer := _best_shape(name, module)) is not None]
    if not layers:
        raise ValueError(f"factorize({type(model).__name__}): expected a Linear or ungrouped convolution; found none.")
    total = count_parameters(model)
    ranks = _allocate(layers, total - sum(layer.size for layer in layers), int(keep_parameters * total))
    return rewrite("factorize", model, example_inputs, optimizers, lambda s: _factorize(s, layers, ranks))


@dataclass(frozen=True)
class _Layer:
    """A layer's weight as a matrix: its singular value decomposition and how two factors are built from it."""

    path: str
    size: int
    cost: int
    left: Tensor
    values: Tensor
    right: Tensor
    build: Callable[[Tensor, Tensor], nn.Module]

    @property
    def energies(self) -> Tensor:
        return self.values.square() / self.values.square().sum().clamp_min(torch.finfo(self.values.dtype).tiny)


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    shared = _shared_weights(model)
    return [
        (name, module)
        for name, module in model.named_modules()
        if name  # the network itself cannot be replaced in place
        and (type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1))
        and id(module.weight) not in shared
    ]


def _shared_weights(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _best_shape(path: str, module: nn.Module) -> _Layer | None:
    """The decomposition with the most energy in a third of the parameters; ``None`` where none is smaller."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    candidates = [_linear_layer(path, module)] if isinstance(module, nn.Linear) else _conv_layers(path, module)
    candidates = [layer for layer in candidates if layer.cost < layer.size]
    return max(
        candidates, key=lambda layer: float(layer.energies[: layer.size // (3 * layer.cost)].sum()), default=None
    )


def _decompose(
    path: str, module: nn.Linear | nn.Conv2d, matrix: Tensor, build: Callable[[Tensor, Tensor], nn.Module]
) -> _Layer:
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    left, values, right = torch.linalg.svd(matrix.detach().to(dtype), full_matrices=False)
    return _Layer(path, module.weight.numel(), sum(matrix.shape), left, values, right, build)


def _linear_layer(path: str, module: nn.Linear) -> _Layer:
    def build(outer: Tensor, inner: Tensor) -> nn.Module:
        first = nn.Linear(inner.shape[1], inner.shape[0], bias=False)
        second = nn.Linear(outer.shape[1], outer.shape[0], bias=module.bias is not None)
        return _pair(module, first, inner, second, outer)

    return _decompose(path, module, module.weight, build)


def _conv_layers(path: str, module: nn.Conv2d) -> list[_Layer]:
    rows, columns, height, width = module.weight.shape
    shared: dict[str, Any] = {"padding_mode": module.padding_mode}
    window: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
    vertical: dict[str, Any] = {"stride": (module.stride[0], 1), "dilation": (module.dilation[0], 1)}
    horizontal: dict[str, Any] = {"stride": (1, module.stride[1]), "dilation": (1, module.dilation[1])}
    has_bias = module.bias is not None

    def whole_then_point(outer: Tensor, inner: Tensor) -> nn.Module:
        first = nn.Conv2d(columns, len(inner), (height, width), bias=False, **window, **shared)
        second = nn.Conv2d(len(inner), rows, 1, bias=has_bias)
        return _pair(module, first, inner.reshape(first.weight.shape), second, outer.reshape(second.weight.shape))

    def column_then_row(outer: Tensor, inner: Tensor) -> nn.Module:
        rank, pads = len(inner), module.padding
        up, across = ((pads[0], 0), (0, pads[1])) if not isinstance(pads, str) else (pads, pads)
        first = nn.Conv2d(columns, rank, (height, 1), padding=up, bias=False, **vertical, **shared)
        second = nn.Conv2d(rank, rows, (1, width), padding=across, bias=has_bias, **horizontal, **shared)
        last = outer.reshape(rows, width, rank).permute(0, 2, 1)[:, :, None]
        return _pair(module, first, inner.reshape(rank, columns, height, 1), second, last)

    layers = [_decompose(path, module, module.weight.flatten(1), whole_then_point)]
    if height > 1 and width > 1:
        matrix = module.weight.permute(0, 3, 1, 2).reshape(rows * width, columns * height)
        layers.append(_decompose(path, module, matrix, column_then_row))
    return layers


def _pair(
    module: nn.Linear | nn.Conv2d,
    first: nn.Linear | nn.Conv2d,
    inner: Tensor,
    second: nn.Linear | nn.Conv2d,
    outer: Tensor,
) -> nn.Sequential:
    weight = module.weight
    pair = nn.Sequential(first, second).to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        first.weight.copy_(inner)
        second.weight.copy_(outer)
    pair.train(module.training).requires_grad_(weight.requires_grad)
    second.register_parameter("bias", module._parameters["bias"])  # the same one: an optimizer goes on with it
    return pair


def _allocate(layers: list[_Layer], rest: int, budget: int) -> list[int]:
    """The rank of each layer, 0 where it stays as it is, so that ``rest`` and all layers fit into ``budget``."""
    smallest = rest + sum(min(layer.cost, layer.size) for layer in layers)
    if smallest > budget:
        raise ValueError(
            f"factorize: {budget:,} parameters were asked for, but rank 1 in every layer leaves {smallest:,}. "
            "Ask for more, or fold or prune the network first."
        )

    def ranks_at(threshold: float) -> list[int]:
        wanted = [max(int((layer.energies / layer.cost >= threshold).sum()), 1) for layer in layers]
        return [rank if rank * layer.cost < layer.size else 0 for rank, layer in zip(wanted, layers, strict=True)]

    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low > 0 else high / 1e3
        size = rest + sum(_size(layer, rank) for layer, rank in zip(layers, ranks_at(middle), strict=True))
        low, high = (middle, high) if size > budget else (low, middle)
    return ranks_at(high)


def _size(layer: _Layer, rank: int) -> int:
    return rank * layer.cost if rank else layer.size


def _factorize(surgery: Surgery, layers: list[_Layer], ranks: list[int]) -> list[Kept]:
    kept = []
    for layer, rank in zip(layers, ranks, strict=True):
        if rank == 0:
            kept.append(Kept(layer.path, len(layer.values), "two factors would not be smaller at this energy"))
            continue
        root = layer.values[:rank].sqrt()
        outer, inner = layer.left[:, :rank] * root, root[:, None] * layer.right[:rank]
        surgery.replace_module(layer.path, layer.build(outer, inner))
    return kept
