"""Training batches outside the training loop, as ``training_step`` would get them, without disturbing the loop."""

from copy import copy
from itertools import islice
from typing import Any

import lightning
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils._pytree import tree_leaves, tree_map


def training_batches(
    trainer: lightning.Trainer, pl_module: lightning.LightningModule, count: int, *, epoch: int | None = None
) -> list[Any]:
    """The first ``count`` batches of an epoch (fewer if the loader has fewer), on the device of ``pl_module``.

    Each batch is prepared as in Lightning's loop: precision, ``on_before_batch_transfer``, the device,
    ``on_after_batch_transfer``. Several loaders are combined as in the loop. The random number generators and any
    iterator in use by the loop are left untouched.

    Args:
        trainer: the trainer; without training loaders the list is empty.
        pl_module: the module it trains.
        count: number of batches, at least 0.
        epoch: if given, set on the samplers; Lightning does not set it in a run resumed after its last epoch.
    """
    combined = trainer.fit_loop._combined_loader
    if combined is None:
        return []
    if epoch is not None:
        for sampler in _samplers(combined.iterables):
            getattr(sampler, "set_epoch", lambda epoch: None)(epoch)
    mode: Any = combined._mode  # the mode that Lightning chose
    loaders = CombinedLoader(tree_map(_fresh, combined.iterables), mode)
    with isolate_rng():  # a shuffling loader draws from the generator that training uses
        batches = [batch for batch, _, _ in islice(iter(loaders), count)]
        return [_prepared(trainer, pl_module, batch) for batch in batches]


def _prepared(trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> Any:
    batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch))
    return trainer.strategy.batch_to_device(batch, pl_module.device)


def _fresh(loader: Any) -> Any:
    """``loader`` without the workers and the iterator that the loop may be using."""
    if getattr(loader, "_iterator", None) is None:
        return loader
    loader = copy(loader)
    loader._iterator = None
    return loader


def _samplers(loaders: Any) -> list[Any]:
    """The samplers of one or several loaders, including those inside batch samplers."""
    found = [getattr(loader, name, None) for loader in tree_leaves(loaders) for name in ("sampler", "batch_sampler")]
    return found + [getattr(sampler, "sampler", None) for sampler in found]
