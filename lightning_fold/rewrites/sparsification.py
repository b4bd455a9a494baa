"""sparsify: unstructured zeros, over the whole network at once."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.complexity import count_parameters
from lightning_fold.report import RewriteReport
from lightning_fold.surgery import Surgery

Criterion = Literal["magnitude", "connected"]


def sparsify(
    model: nn.Module,
    sparsity: float,
    *,
    criterion: Criterion = "magnitude",
    optimizers: Iterable[Optimizer] = (),
) -> RewriteReport:
    """Set the least important weights of ``model`` to zero, in place.

    Weights of at least two dimensions compete over the whole network; biases and normalisation stay. Zeros that are
    there already count.

    Args:
        model: any network.
        sparsity: share of the weights that are zero afterwards, in [0, 1).
        criterion: ``"magnitude"`` ranks by |w|. ``"connected"`` ranks by |w| times the norm of its row and of its
            column, each as a share of its layer's mean, so that whole rows and columns empty first.
        optimizers: optimizers of the network; state of zeroed weights is set to zero.

    Returns:
        A report whose ``masks`` hold, for every weight that competed, a boolean tensor: True where it stays. Keep the
        zeros in training by multiplying with them after each optimizer step.

    Raises:
        ValueError: ``sparsity`` is out of range, ``criterion`` is unknown, or there is no weight to zero.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsify(sparsity={sparsity}): expected a share in [0, 1), for example sparsity=0.9.")
    if criterion not in ("magnitude", "connected"):
        raise ValueError(f"sparsify(criterion={criterion!r}): expected 'magnitude' or 'connected'.")
    weights = prunable_weights(model)
    if not weights:
        raise ValueError(f"sparsify({type(model).__name__}): expected a Linear or convolution weight; found none.")
    scores = {name: _score(weight, criterion) for name, weight in weights.items()}
    masks = _largest(scores, sparsity)
    parameters = count_parameters(model)
    with Surgery(model, optimizers) as surgery:
        for name, mask in masks.items():
            surgery.transform(name, lambda tensor, keep=mask: tensor * keep)
    return RewriteReport("sparsify", parameters, parameters, masks=masks)


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear layers and convolutions by dotted name; tied weights once."""
    owners = (nn.Linear, nn.modules.conv._ConvNd)
    owned = [module._parameters.get("weight") for module in model.modules() if isinstance(module, owners)]
    competing = {id(weight) for weight in owned if weight is not None}
    return {name: parameter.detach() for name, parameter in model.named_parameters() if id(parameter) in competing}


def sparsity_of(model: nn.Module) -> float:
    """Share of exact zeros among the weights of linear layers and convolutions."""
    weights = prunable_weights(model).values()
    return sum(int((weight == 0).sum()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)


def _score(weight: Tensor, criterion: Criterion) -> Tensor:
    score = weight.abs()
    if criterion == "magnitude":
        return score
    rows = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
    columns = weight.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (weight.dim() - 2))
    tiny = torch.finfo(weight.dtype).tiny
    return score * (rows / rows.mean().clamp_min(tiny)) * (columns / columns.mean().clamp_min(tiny))


def _largest(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks of the best scores over all tensors together; exactly the asked share is left out, ties by position."""
    joined = torch.cat([score.flatten() for score in scores.values()])
    keep = torch.ones(len(joined), dtype=torch.bool, device=joined.device)
    zeros = round(sparsity * len(joined))
    keep[torch.argsort(joined, stable=True)[:zeros]] = False
    parts = torch.split(keep, [score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}
