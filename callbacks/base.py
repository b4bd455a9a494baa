"""What every callback that rewrites a network shares."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.checkpointing import CompressionRecord, Snapshot, follow, network_of
from lightning_fold.report import RewriteReport
from lightning_fold.structure.groups import channel_groups
from lightning_fold.structure.trace import Inputs

Rewrite = Callable[[nn.Module, Inputs, Iterable[Optimizer]], RewriteReport]


class RewriteCallback(lightning.Callback):
    """Base of the callbacks that rewrite a network in training: finds it, rewrites it, rebinds optimizers and DDP.

    Args:
        module: dotted path of the network inside the LightningModule; empty finds it (``network``, ``model``, ``net``,
            ``backbone``, or the only submodule with parameters).
        monitor: name of a logged validation metric, higher is better.
    """

    def __init__(self, module: str = "", monitor: str = "accuracy/val") -> None:
        self.module = module
        self.monitor = monitor
        self.metric: float | None = None
        self._example: Tensor | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse strategies that keep their own copy of the parameters; let checkpoints hold the structure."""
        if stage == "fit" and not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"{type(self).__name__}: Trainer(strategy={type(trainer.strategy).__name__}) keeps its own copy of the "
                "parameters, whose shapes change here; expected one device or DDP, for example strategy='ddp'."
            )
        follow(pl_module, self.module)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch of an epoch: remember its inputs, do what the schedule says; first, read the network.

        Not in ``on_train_epoch_start``, which Lightning leaves out after some restarts.
        """
        if batch_idx == 0:
            self._remember(trainer, pl_module, batch)
            if trainer.current_epoch == 0:  # a network that cannot be read fails now, not days later
                channel_groups(network_of(pl_module), self._example)
            self.begin_epoch(trainer, pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the validation metric for decisions at the start of the next epoch."""
        if not trainer.sanity_checking and self.monitor in trainer.callback_metrics:
            self.metric = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Do what remains to be done."""
        if self._example is not None:
            self.finish(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Do what remains to be done where a run was resumed after its last epoch: Lightning calls no other hook."""
        loader = trainer.train_dataloader
        if self._example is None and loader is not None and not trainer.interrupted:
            self._remember(trainer, pl_module, next(iter(loader)))
            self.finish(trainer, pl_module)

    def begin_epoch(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What happens before the first batch of each epoch."""

    def finish(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What happens once, after the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"metric": self.metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an interrupted run."""
        self.metric = state_dict["metric"]

    def rewrite(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, method: str, change: Rewrite
    ) -> RewriteReport:
        """Apply ``change`` to the network with the trainer's optimizers, and record it.

        The network as it is before the first rewrite of a run is kept as the dense one.
        """
        assert self._example is not None, "a rewrite needs inputs: at least one training batch"
        network = network_of(pl_module)
        remember_dense(pl_module, self.metric, self.monitor)
        report = change(network, self._example, trainer.optimizers)
        record: CompressionRecord = follow(pl_module)
        record.methods.append({"method": method, "epoch": trainer.current_epoch, "parameters": report.parameters_after})
        rebuild_reducer(trainer, pl_module)
        return report

    def _remember(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any) -> None:
        """Keep a batch's inputs, the same ones on every process, so that all processes decide alike."""
        self._example = trainer.strategy.broadcast(inputs_of(batch)).to(pl_module.device)


def remember_dense(pl_module: lightning.LightningModule, metric: float | None, monitor: str) -> None:
    """Keep the network as the dense one, where no rewrite has come before."""
    record = follow(pl_module)
    if record.dense is None:
        record.dense = Snapshot.take(network_of(pl_module), {} if metric is None else {monitor: metric})


def inputs_of(batch: Any) -> Tensor:
    """The network's input in a batch: the batch itself, or its first element.

    Raises:
        TypeError: the batch has no tensor there.
    """
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        raise TypeError(f"expected batches of tensors or (inputs, ...), found a {type(batch).__name__}")
    return first


def rebuild_reducer(trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
    """Let DDP's gradient reduction know the new parameters; nothing once the module has left its device."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and pl_module.device.type == strategy.root_device.type:
        strategy.model = pl_module
        strategy.configure_ddp()


def check_choice(call: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{call}({name}={value!r}): expected one of {', '.join(map(repr, choices))}.")


def check_share(call: str, name: str, value: float, *, one: bool = False) -> None:
    """Raise ``ValueError`` unless ``value`` is a share in [0, 1), or in (0, 1] where ``one``."""
    if not (0 < value <= 1 if one else 0 <= value < 1):
        raise ValueError(f"{call}({name}={value}): expected a share in {'(0, 1]' if one else '[0, 1)'}.")
