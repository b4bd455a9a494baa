"""repair: the statistics of a network after a lossy rewrite."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def repair(model: nn.Module, dataloader: Iterable[Any]) -> None:
    """Estimate the running mean and variance of every BatchNorm of ``model`` again, in place.

    Source: data repair of "Model Folding" (arXiv 2502.10216): statistics are reset and averaged over the batches.

    Args:
        model: any network; without BatchNorm nothing changes.
        dataloader: batches of inputs, or (inputs, ...) of which the first element is read.

    Raises:
        ValueError: ``dataloader`` yields no batch.

    Whatever goes wrong, the statistics are as they were.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    statistics = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    device = next(model.parameters()).device
    batches = iter(dataloader)
    batch = next(batches, None)
    if batch is None:
        raise ValueError("repair(model, dataloader): the dataloader is empty; expected at least one batch.")
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            while batch is not None:
                inputs = batch if isinstance(batch, Tensor) else batch[0]
                model(inputs.to(device))
                batch = next(batches, None)
    except BaseException:
        for norm, saved in zip(norms, statistics, strict=True):
            norm.load_state_dict(saved, strict=False)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
