"""Refuses, before training starts, setups that cannot handle a network whose shapes change."""

import lightning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_fold.callbacks.loop.run import CompressionRun
from lightning_fold.errors import ArgumentError
from lightning_fold.structure.graph.trace import trace
from lightning_fold.surgery.optimizers import check_optimizers


def refuse_strategy(call: str, trainer: lightning.Trainer) -> None:
    """Refuse strategies that keep their own copy of the parameters, or whose processes send back only weights.

    FSDP, DeepSpeed and ModelParallel keep a copy. Spawned and forked processes send back weights, which no longer fit
    the original network.
    """
    strategy, followed = trainer.strategy, (SingleDeviceStrategy, DDPStrategy)
    if not isinstance(strategy, followed) or strategy.restore_checkpoint_after_setup:  # DeepSpeed is a DDPStrategy too
        raise ArgumentError(
            f"{call}: Trainer(strategy={type(strategy).__name__}) keeps its own copy of the parameters, whose "
            "shapes change here; expected one device or DDP, for example strategy='ddp'."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ArgumentError(
            f"{call}: Trainer(strategy='ddp_spawn' or 'ddp_fork') trains in processes that send only weights back, "
            "and these no longer fit the original network once it has shrunk; expected strategy='ddp'."
        )


def refuse_training(call: str, run: CompressionRun) -> None:
    """Refuse optimizers that store all parameters in one flat vector, and training steps that take no batch.

    Raises:
        ArgumentError: the message names the optimizer or step and says what to do.
    """
    check_optimizers(run.optimizers)
    pl_module = run.pl_module
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise ArgumentError(
            f"{call}: {type(pl_module).__name__}.training_step takes dataloader_iter; expected training_step(batch, "
            "batch_idx), because the first batch shows the network's inputs."
        )


def refuse_unused(call: str, run: CompressionRun) -> None:
    """Refuse a whole LightningModule as the network if its ``forward`` leaves submodules unused."""
    if run.record.network:
        return
    pl_module, graph = run.pl_module, trace(run.network, run.inputs)
    used = {name.partition(".")[0] for node, name in graph.names.items() if node.users}
    children = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
    unused = [name for name in children if name not in used]
    if unused:
        raise ArgumentError(
            f"{call}(module=''): {type(pl_module).__name__} has several networks, and its forward does not use "
            f"{unused}. Name the one to compress: module=NAME, one of {children}."
        )
