"""repair: re-estimate the BatchNorm statistics of a network after a lossy rewrite."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_fold.complexity import count_parameters
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs, batch_size, call, inputs_for, join_inputs
from lightning_fold.layers import CompensatedNorm
from lightning_fold.report import RewriteReport, some_of
from lightning_fold.rewrites.observe import forward_hooks
from lightning_fold.rewrites.wrappers import check_there
from lightning_fold.structure.graph.trace import evaluation_mode, unwrapped


def repair(model: nn.Module, batches: Iterable[Any]) -> RewriteReport:
    """Re-estimate the running mean and variance of every BatchNorm of ``model``, in place.

    Also takes networks wrapped in ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``. Shapes,
    parameters and optimizers are not changed.

    Source: data repair of "Model Folding" (arXiv 2502.10216): statistics are reset and averaged over the batches.

    Args:
        model: any network; without BatchNorm nothing changes.
        batches: a ``DataLoader`` or an iterable of batches. A batch is a tensor of inputs, a tuple that starts with the
            inputs of the network, or a mapping. A batch with a single example is joined with its neighbour. BatchNorms
            that no batch reaches keep their statistics.

    Returns:
        A report with the (unchanged) number of parameters and a note on BatchNorms that no batch reached.

    Raises:
        ArgumentError: ``batches`` is empty, or has NaN or infinity; the statistics are unchanged.
    """
    network = unwrapped(model)
    check_there("repair", network)
    unreached = estimate_statistics(network, (inputs_for(network, batch) for batch in batches))
    notes = [f"no batch reached {some_of(unreached)}: the statistics are unchanged"] if unreached else []
    if not _norms(network):
        notes = [f"{type(network).__name__} has no BatchNorm with statistics: nothing changed"]
    parameters = count_parameters(network)
    return RewriteReport("repair", parameters, parameters, notes=tuple(notes))


def estimate_statistics(model: nn.Module, batches: Iterable[Inputs]) -> list[str]:
    """Run :func:`repair` on an unwrapped network with inputs on its device; return the BatchNorms that none reached."""
    named = _norms(model)
    norms = list(named.values())
    if not norms:
        return []
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    statistics = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    batches = _joined_where_single(batches)
    batch = next(batches, None)
    if batch is None:
        raise ArgumentError("repair(batches=[]): expected at least one batch of inputs, or of (inputs, ...).")
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    complete, unreached = False, []
    try:
        with torch.no_grad():
            while batch is not None:
                call(model, batch)
                batch = next(batches, None)
        complete = True
        unreached = [name for name, norm in named.items() if not norm.num_batches_tracked]
    finally:
        for norm, momentum, saved in zip(norms, momenta, statistics, strict=True):
            norm.momentum = momentum
            if not complete or not norm.num_batches_tracked:  # no batch reached it
                norm.load_state_dict(saved, strict=False)
        for module, training in modes:
            module.training = training
    return unreached


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorms with running statistics, by dotted name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {name or "the network itself": module for name, module in found.items() if module.track_running_stats}


def _joined_where_single(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """The batches in order; a single example, which may have no variance, joins a neighbour if the shapes match."""
    held: list[Inputs] = []
    for batch in batches:
        if held and batch_size(held[-1]) == 1:
            held[-1:] = _together(held[-1], batch)
        else:
            held.append(batch)
        while len(held) > (2 if batch_size(held[-1]) == 1 else 1):
            yield held.pop(0)
    yield from _together(*held) if len(held) == 2 else held


def _together(first: Inputs, second: Inputs) -> list[Inputs]:
    joined = join_inputs([first, second])
    return [first, second] if joined is None else [joined]


def tune_layer_norms(dense: nn.Module, model: nn.Module, inputs: Inputs, rows: Mapping[str, Tensor]) -> None:
    """Fit scale and shift of every LayerNorm and RMSNorm of ``model`` to the dense network's outputs, in place.

    Least squares for each channel, in closed form and in one pass: each norm sees the outputs of the tuned norms before
    it.

    Args:
        dense: the network before the rewrite.
        model: the network after it; changed in place.
        inputs: inputs for both networks.
        rows: for each norm, by dotted name, the matrix (channels left, channels) that maps the dense network's channels
            to the target.
    """
    targets: dict[str, Tensor] = {}

    def remember(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            found = _by_channel(module, output)
            targets[path] = found @ rows[path].T.to(found)

        return hook

    def tune(path: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            found, target = _by_channel(module, output).double(), targets.pop(path).double()
            bias: Any = getattr(module, "bias", None)
            mean, goal = (found.mean(0), target.mean(0)) if bias is not None else (0.0, 0.0)
            centred = found - mean
            slope = (centred * (target - goal)).sum(0) / centred.square().sum(0).clamp_min(1e-30)
            slope = torch.where(slope > 0, slope, 1.0)
            weight: Any = module.weight
            weight.data = weight.data * slope.to(weight)
            if bias is not None:
                bias.data = bias.data * slope.to(bias) + (goal - mean * slope).to(bias)
            dim = _channel_dim(module, output)
            view = [-1 if d == dim else 1 for d in range(output.dim())]
            shift = goal - mean * slope if bias is not None else torch.zeros_like(slope)
            return output * slope.to(output).reshape(view) + shift.to(output).reshape(view)

        return hook

    for network, hook in ((dense, remember), (model, tune)):
        hooks = [(network.get_submodule(path), hook(path)) for path in rows]
        with forward_hooks(hooks), evaluation_mode(network), torch.no_grad():
            call(network, inputs)


def is_layer_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm, an RMSNorm or similar, with a scale for each channel."""
    weight = getattr(module, "weight", None)
    known = hasattr(module, "normalized_shape") or isinstance(module, CompensatedNorm)
    return known and isinstance(weight, nn.Parameter) and weight.dim() == 1


def _by_channel(module: nn.Module, value: Tensor) -> Tensor:
    return value.movedim(_channel_dim(module, value), -1).flatten(0, -2)


def _channel_dim(module: nn.Module, value: Tensor) -> int:
    """The channel dimension: the last, or dimension 1 as in timm's LayerNorm2d."""
    width = module.weight.shape[0]  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    return value.dim() - 1 if value.shape[-1] == width else 1
