"""factorize: replace linear layers and convolutions by two low-rank layers, by singular value decomposition."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from lightning_fold.complexity import count_flops, count_parameters
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import Kept, RewriteReport
from lightning_fold.rewrites.calibration import precise
from lightning_fold.rewrites.factorization.matrix_views import (
    KINDS,
    MatrixView,
    matrix_views,
    moments_of,
    product,
    reads_less,
)
from lightning_fold.rewrites.factorization.rank_allocation import DecomposedLayer, ranks_of
from lightning_fold.rewrites.factorization.replaceability import Use, find_irreplaceable, find_uses, left_alone
from lightning_fold.rewrites.size import Keep, Of, Size, missed
from lightning_fold.rewrites.transaction import rewrite
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.surgery.transaction import Surgery

_FIXED = "is not called as a submodule, or its type is checked, so it cannot be replaced by two layers"


@on_network
def factorize(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    keep: Keep = 0.5,
    of: Of = "parameters",
    batches: Iterable[Any] | None = None,
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Replace linear layers and convolutions of ``model``, in place, by two low-rank layers each.

    A linear layer becomes two linear layers. A k x k convolution becomes a k x k convolution to r channels and a 1 x 1
    convolution, or a k x 1 and a 1 x k convolution, whichever keeps more energy at a third of the cost. Ranks are
    allocated over the whole network: the singular values with the most energy (as a share of their layer) per
    parameter, or per FLOP, are kept first, until the rest of the budget is too small for one more rank in any layer.
    Two layers from an earlier call are treated as the single layer they replaced.

    A layer is left unchanged if its factors would not be smaller, if it is not called as a submodule, if its type is
    checked, or if other code reads its weight. The fast path of ``nn.TransformerEncoderLayer`` reads weights: to
    factorize its layers, call ``torch.backends.mha.set_fastpath_enabled(False)`` first and keep it disabled.

    With ``batches``, the layer's outputs on data are decomposed instead of its weights: W C^(1/2), where C is the
    second moment of the inputs. This gives the smallest output error, not weight error, for each rank (for k x 1 then
    1 x k, taking each column of the window separately).

    Source: the compressor of "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469); layer shapes, rank
    allocation and whitening are this project's own.

    Args:
        model: any network with at least one linear layer or convolution inside.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.
        keep: share to keep, in (0, 1], or a mapping from shell-style patterns of dotted layer names to such shares. The
            first pattern that matches a layer applies; ``"*"`` stands for all other layers.
        of: what ``keep`` is a share of. ``"parameters"`` and ``"flops"`` are budgets over the network. In a mapping,
            ``"*"`` is then the share of the whole network, and layers that match another pattern keep at least its
            share of their own weights (or FLOPs). With ``"channels"``, each layer gets this share of its full rank
            (the smaller of the rows and columns of its matrix) as the channels between its two factors; layers that
            match no pattern are not changed. The factors are smaller than the layer only if their rank is below
            rows * columns / (rows + columns), half the full rank of a square matrix.
        batches: a few batches of data: inputs, tuples (inputs, ...) that start with the network's inputs, or mappings.
        optimizers: optimizers of the network; the factors start without optimizer state in the parameter group of
            their layer, and the bias remains the same parameter.

    Raises:
        ArgumentTypeError: ``keep`` is neither a number nor a mapping.
        ArgumentError: a share is out of range, a pattern matches nothing, there is no layer to factorize, there are no
            batches, or the budget cannot be reached.
        RewriteError: the network does not run afterwards; the network and optimizers are restored.
    """
    size = Size(keep, of)
    size.check("factorize")

    def change(surgery: Surgery) -> list[Kept]:
        count = lambda: count_flops(model, example_inputs) if of == "flops" else count_parameters(model)  # noqa: E731
        before = count()
        merged = _merge_pairs(surgery)
        layers, kept = _layers(model, example_inputs, of, batches)
        size.check_patterns("factorize", [layer.shape.path for layer in layers])
        ranks = ranks_of(layers, count() if merged else before, before, size, kept)
        return kept + _replace(surgery, layers, ranks, size)

    report = rewrite("factorize", model, example_inputs, optimizers, change)
    note = missed(report, size)
    return replace(report, notes=(note,) if note else ())


def _merge_pairs(surgery: Surgery) -> bool:
    """Merge each pair of layers from an earlier call back into one layer; return whether there were any."""
    pairs = {path: layer for path, pair in surgery.model.named_modules() if path and (layer := product(pair))}
    for path, layer in pairs.items():
        surgery.replace_module(path, layer)
    return bool(pairs)


def _layers(
    model: nn.Module, example_inputs: Inputs, unit: str, batches: Iterable[Any] | None
) -> tuple[list[DecomposedLayer], list[Kept]]:
    """The decompositions of all layers that can be factorized, and the other weights with the reasons to keep them."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, _ConvNd))}
    uses = find_uses(model, example_inputs, modules.values())
    reasons = {name: why for name, module in modules.items() if (why := _reason(model, name, module, uses[module]))}
    tried = {module: use for module, use in uses.items() if not any(modules[name] is module for name in reasons)}
    fixed = find_irreplaceable(model, example_inputs, tried)
    reasons |= {name: _FIXED for name, module in modules.items() if module in fixed}
    found = [matrix_views(name, module) for name, module in modules.items() if name not in reasons]  # pyright: ignore
    if not found:
        raise ArgumentError(
            f"factorize({type(model).__name__}): expected a Linear or ungrouped convolution inside; found none."
            f"{left_alone(reasons)}"
        )
    each = [shape for group in found for shape in group]
    moments = None if batches is None else moments_of(model, example_inputs, batches, each)
    layers = []
    for group in found:
        if moments is not None and id(group[0]) not in moments:
            reasons[group[0].path] = "is not called on the batches"
            continue
        candidates = [_decompose(shape, uses[shape.layer].calls, unit, moments) for shape in group]
        smaller = [layer for layer in candidates if layer.cost < layer.size]
        if smaller:
            layers.append(max(smaller, key=lambda layer: float(layer.energies[: layer.size // (3 * layer.cost)].sum())))
        else:
            reasons[group[0].path] = "two factors would not be smaller"
    kept = [Kept(name, modules[name].weight.shape[0], reason) for name, reason in reasons.items()]
    return layers, kept + _other_weights(model)


def _reason(model: nn.Module, name: str, module: nn.Module, use: Use) -> str | None:
    """Why a layer cannot be replaced; ``None`` if it can."""
    weight = module._parameters.get("weight")
    owners = [m for m in model.modules() if any(p is weight for p in m._parameters.values())]
    if not name:
        return "the network itself cannot be replaced in place: pass nn.Sequential(network)"
    if use.read:
        return f"cannot be replaced by two layers: another module reads its {use.read[0]}"
    if not use.calls:
        return "is not called on the example inputs"
    if type(module) not in KINDS or weight is None:
        return f"is a {type(module).__name__}, which may compute more than a plain layer with its weight"
    if getattr(module, "groups", 1) > 1:
        return "is grouped: each group is a separate small matrix"
    if len(owners) > 1:
        return "shares its weight with another layer"
    return None


def _other_weights(model: nn.Module) -> list[Kept]:
    """Parameters of at least two dimensions that belong to no linear layer or convolution."""
    return [
        Kept(f"{path}.{name}".removeprefix("."), parameter.shape[0], f"is a parameter of a {type(module).__name__}")
        for path, module in model.named_modules()
        if not isinstance(module, (nn.Linear, _ConvNd))
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() > 1
    ]


def _decompose(
    shape: MatrixView, calls: Sequence[Inputs], unit: str, moments: dict[int, Tensor] | None
) -> DecomposedLayer:
    matrix = precise(shape.matrix)
    basis, energies = _directions(matrix, None if moments is None else moments[id(shape)], reads_less(shape))
    size, cost = shape.layer.weight.numel(), sum(matrix.shape)
    if unit == "flops":
        one = shape.pair(matrix[:, :1], matrix[:1])
        size = sum(count_flops(shape.layer, each) for each in calls)
        cost = sum(count_flops(one, each) for each in calls)
    return DecomposedLayer(
        shape, size, cost, basis, energies / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
    )


def _directions(matrix: Tensor, moment: Tensor | None, of_inputs: bool) -> tuple[Tensor, Tensor]:
    """Orthonormal directions of the outputs of M, ``matrix``, and the energy of each, in descending order.

    They are the left singular vectors of M C^(1/2), where C is the second moment of the inputs of M; without
    ``moment``, C is the identity.
    """
    if moment is not None and not of_inputs:  # M C M^H
        energies, basis = torch.linalg.eigh(moment)
        rank = min(matrix.shape)
        return basis.flip(1)[:, :rank].to(matrix), energies.flip(0)[:rank].clamp_min(0)
    if moment is not None:
        values, vectors = torch.linalg.eigh(moment)
        matrix = matrix @ (vectors * values.clamp_min(0).sqrt()).to(matrix)
    basis, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return basis, values.square()


def _replace(surgery: Surgery, layers: list[DecomposedLayer], ranks: list[int], size: Size) -> list[Kept]:
    kept = []
    for layer, rank in zip(layers, ranks, strict=True):
        if rank == 0:
            spared = not size.is_budget and size.share_of([layer.shape.path]) is None
            reason = "no pattern of keep matches it" if spared else "two factors would not be smaller at this rank"
            kept.append(Kept(layer.shape.path, layer.shape.layer.weight.shape[0], reason))
            continue
        basis = layer.basis[:, :rank]
        inner = basis.mH @ layer.shape.matrix.to(basis.dtype)
        root = inner.norm(dim=1).clamp_min(torch.finfo(basis.dtype).tiny).sqrt()  # gives both factors the same norm
        surgery.replace_module(layer.shape.path, layer.shape.pair(basis * root, inner / root[:, None]))
    return kept
