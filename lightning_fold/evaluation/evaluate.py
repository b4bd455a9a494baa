"""Evaluates a network inside a LightningModule, in place of the module's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from lightning_fold.remarks import without_hardware
from lightning_fold.storage.checkpoints import record_of

Split = Literal["val", "test"]

_STEPS = {"val": "validation", "test": "test"}


def evaluate(
    module: lightning.LightningModule,
    network: nn.Module,
    datamodule: lightning.LightningDataModule,
    split: Split,
    *,
    seed: int | None = None,
    **limits: Any,
) -> dict[str, float]:
    """The metrics that ``module`` logs in validation or test with ``network`` in place of its own.

    Args:
        module: defines the metrics; its own network is put back afterwards.
        network: moved to the accelerator and back to the CPU.
        datamodule: the data.
        split: ``"val"`` validates, ``"test"`` tests.
        seed: seeds the global generators before the data is set up; ``None`` leaves them unchanged.
        limits: arguments of ``lightning.Trainer``, for example ``limit_test_batches=2``.

    Returns:
        The metrics by name, with Lightning's suffixes if there are several loaders; empty if the module has no such
        step or the data no such loader.
    """
    if not is_overridden(f"{_STEPS[split]}_step", module) or not is_overridden(f"{split}_dataloader", datamodule):
        return {}
    with _in_place(module, network) as subject, without_hardware():
        trainer = lightning.Trainer(
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **limits,
        )
        if seed is not None:
            lightning.seed_everything(seed, verbose=False)
        run = trainer.validate if split == "val" else trainer.test
        found = run(subject, datamodule=datamodule, verbose=False)
    network.cpu()
    return {name: float(value) for metrics in found for name, value in metrics.items()}


@contextmanager
def _in_place(module: lightning.LightningModule, network: nn.Module) -> Iterator[lightning.LightningModule]:
    """``module`` with its network replaced by ``network``; ``network`` itself if it is the whole LightningModule."""
    parent, _, leaf = record_of(module).network.rpartition(".")
    if not leaf:
        assert isinstance(network, lightning.LightningModule)
        yield network
        return
    owner = module.get_submodule(parent)
    original = getattr(owner, leaf)
    setattr(owner, leaf, network)
    try:
        yield module
    finally:
        setattr(owner, leaf, original)
