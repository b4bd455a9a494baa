"""sparsify: set the least important weights of the whole network to zero (unstructured sparsity)."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.complexity import count_parameters
from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport
from lightning_fold.rewrites.wrappers import on_network
from lightning_fold.structure.groups import ChannelGroup, channel_groups
from lightning_fold.surgery.transaction import Surgery

Criterion = Literal["magnitude", "connected"]


@on_network
def sparsify(
    model: nn.Module,
    sparsity: float,
    *,
    criterion: Criterion = "magnitude",
    example_inputs: Inputs | None = None,
    select_inputs: bool = False,
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Set the least important weights of ``model`` to zero, in place.

    The weights of all linear layers and convolutions are ranked together; biases and normalisation parameters are not
    changed. Existing zeros count.

    Args:
        model: any network.
        sparsity: share of the weights that are zero afterwards, in [0, 1).
        criterion: ``"magnitude"`` ranks by |w|. ``"connected"`` ranks by the weaker of the two channels that the weight
            connects, so that whole rows and columns become zero: a channel's strength is the geometric mean of the
            root mean squares of the weights that write it and of those that read it, relative to the layer's mean.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first; needed
            by ``"connected"``.
        select_inputs: let ``"connected"`` also zero whole columns of linear layers that read the network's inputs.
        optimizers: optimizers of the network; optimizer state of zeroed weights is set to zero.

    Returns:
        A report whose ``masks`` hold a boolean tensor for every ranked weight tensor: True where a weight is kept. To
        keep the zeros in training, multiply the weights by these masks after each optimizer step.

    Raises:
        ArgumentError: ``sparsity`` is out of range, ``criterion`` is unknown, or there is no weight to zero.
        TraceError: ``"connected"`` cannot trace the network.
    """
    if not 0 <= sparsity < 1:
        raise ArgumentError(f"sparsify(sparsity={sparsity}): expected a share in [0, 1), for example sparsity=0.9.")
    if criterion not in ("magnitude", "connected"):
        raise ArgumentError(f"sparsify(criterion={criterion!r}): expected 'magnitude' or 'connected'.")
    weights = prunable_weights(model)
    if not weights:
        raise ArgumentError(f"sparsify({type(model).__name__}): expected a Linear or convolution weight; found none.")
    if criterion == "magnitude":
        scores = {name: weight.abs() for name, weight in weights.items()}
    elif example_inputs is None:
        raise ArgumentError(
            "sparsify(criterion='connected'): expected example_inputs, to find the weights that read each channel."
        )
    else:
        scores = _connected_scores(model, weights, example_inputs, select_inputs)
    masks = _largest(scores, sparsity)
    parameters = count_parameters(model)
    with Surgery(model, optimizers) as surgery:
        for name, mask in masks.items():
            surgery.transform(name, lambda tensor, keep=mask: tensor * keep)
    return RewriteReport("sparsify", parameters, parameters, masks=masks)


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear layers and convolutions by dotted name; tied weights appear once."""
    owners = (nn.Linear, nn.modules.conv._ConvNd)
    owned = [module._parameters.get("weight") for module in model.modules() if isinstance(module, owners)]
    competing = {id(weight) for weight in owned if weight is not None}
    return {name: parameter.detach() for name, parameter in model.named_parameters() if id(parameter) in competing}


def sparsity_of(model: nn.Module) -> float:
    """Share of exact zeros among the weights of linear layers and convolutions."""
    weights = prunable_weights(model).values()
    return sum(int((weight == 0).sum()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)


def _connected_scores(
    model: nn.Module, weights: dict[str, Tensor], example_inputs: Inputs, select_inputs: bool
) -> dict[str, Tensor]:
    """The strength of the weaker channel that each weight connects; magnitude breaks ties."""
    strengths: dict[tuple[str, int], Tensor] = {}
    for group in channel_groups(model, example_inputs):
        if group.pinned is None:
            strength = _strength(dict(model.named_parameters()), group)
            for member in group.members:
                if member.dim < 2 and member.tensor in weights:
                    size = weights[member.tensor].shape[member.dim]
                    fresh = torch.full((size,), torch.inf, dtype=torch.float64)
                    every = strengths.setdefault((member.tensor, member.dim), fresh)
                    every[member.indices] = strength[:, None].expand(member.indices.shape)
    scores = {}
    for name, weight in weights.items():
        rows = strengths.get((name, 0), torch.full((weight.shape[0],), torch.inf)).to(weight)
        columns = strengths.get((name, 1))
        if columns is None:
            columns = torch.full((weight.shape[1],), torch.inf)
            if select_inputs and weight.dim() == 2:
                columns = _relative(weight.square().mean(0).sqrt())
        weaker = torch.minimum(rows[:, None], columns.to(weight)[None])
        ranked = weaker.reshape(*weaker.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
        scores[name] = ranked * (1 + 1e-4 * weight.abs() / weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny))
    return scores


def _strength(parameters: dict[str, Tensor], group: ChannelGroup) -> Tensor:
    """(channels,) sqrt(rms(writing weights) rms(reading weights)) times normalisation scales, divided by its mean."""
    written, read, scale = [], [], []
    for member in group.members:
        if member.tensor not in parameters:
            continue
        tensor = parameters[member.tensor].detach()
        rows = tensor.movedim(member.dim, 0)[member.indices.to(tensor.device)].flatten(1).cpu()
        if tensor.dim() > 1:
            (read if member.reads else written).append(rows)
        elif member.tensor.endswith("weight"):
            scale.append(rows)
    strength = torch.ones(group.size, dtype=torch.float64)
    for parts in (written, read):
        if parts:
            strength = strength * torch.cat(parts, 1).double().square().mean(1).sqrt().sqrt()
    if scale:
        strength = strength * torch.cat(scale, 1).double().square().mean(1).sqrt()
    return _relative(strength)


def _relative(strength: Tensor) -> Tensor:
    """Strength as a share of its mean, so that layers can be compared."""
    return strength / strength.mean().clamp_min(torch.finfo(strength.dtype).tiny)


def _largest(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks of the best scores over all tensors; exactly the requested share is False, and position breaks ties."""
    joined = torch.cat([score.flatten() for score in scores.values()])
    keep = torch.ones(len(joined), dtype=torch.bool, device=joined.device)
    zeros = round(sparsity * len(joined))
    keep[torch.argsort(joined, stable=True)[:zeros]] = False
    parts = torch.split(keep, [score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
