"""SmoothnessRegularization: adds penalties on the weights of any LightningModule in training."""

from typing import Any

import lightning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import LBFGS, Optimizer

from lightning_fold.errors import ArgumentError
from lightning_fold.regularizers import Smoothness


class SmoothnessRegularization(Smoothness, lightning.Callback):
    """Penalises rough weights, so that the network loses less when it is factorized, folded or pruned.

    It needs no change of the module or its loss: it adds the gradients of the penalties before each optimizer step,
    after gradients are unscaled and reduced, and only once per step under accumulation.
    ``Trainer(gradient_clip_val=...)`` clips them too; ``self.clip_gradients`` in manual optimization runs earlier and
    does not. Steps are counted separately for each optimizer. After a rewrite it penalises the new layers; frozen
    layers are included once they train.

    Logs each penalty without its strength, averaged over the epoch, as ``smoothness/<penalty>``, and at the end of the
    epoch ``smoothness/spectrum_decay``: the share of the energy in the largest quarter of the singular values. If there
    are several, the second logs as ``smoothness/nuclear_norm 2`` and so on; a module's own ``regularizers`` come first.

    Suggested: the nuclear norm before LowRankFactorization or ChannelFolding, with a warm-up. Its effect depends on
    learning rate x strength x steps: 0.005 was best for 1,200 steps at 0.05 with momentum 0.9, so use less for longer
    training. Too much reduces the accuracy of the dense network. It does not help layers that are not compressed
    afterwards: skip them. Adam divides a penalty by the size of the gradients, so it acts most on weights with small
    gradients.

    Source: "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469).
    """

    _steps: tuple[int, ...] = ()  # per optimizer

    @property
    def state_key(self) -> str:
        """The state's key in checkpoints: there may be several callbacks, each with its own layers."""
        return self._generate_state_key(**self.arguments())

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse incompatible strategies and optimizers, and patterns that match no layer."""
        check_regularization(self, trainer, pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start counting the steps of each optimizer, unless a checkpoint has restored the counts."""
        optimizers = len(trainer.optimizers)
        if trainer.global_step == 0 or len(self._steps) != optimizers:
            self._steps = tuple(trainer.global_step // optimizers for _ in trainer.optimizers)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradients of the penalties."""
        step = self._steps[trainer.optimizers.index(optimizer)]
        regularize(self, trainer, pl_module, optimizer, step=step)
        self._steps = tuple(n + (each is optimizer) for n, each in zip(self._steps, trainer.optimizers, strict=True))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the spectrum's decay."""
        log_spectrum(self, trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps of each optimizer."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts of an interrupted run."""
        self._steps = tuple(state_dict["steps"])


def check_regularization(
    smoothness: Smoothness, trainer: lightning.Trainer, pl_module: lightning.LightningModule
) -> None:
    """Refuse setups in which ``smoothness`` cannot train, and warn about layers that it leaves out.

    Raises:
        ArgumentError: the strategy splits the weights, an optimizer is LBFGS, no layer of the module is selected, or a
            pattern matches none.
    """
    whole = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if not whole or trainer.strategy.restore_checkpoint_after_setup:  # DeepSpeed is a DDPStrategy too
        raise ArgumentError(
            f"{type(smoothness).__name__}: Trainer(strategy={type(trainer.strategy).__name__}) may split the weights "
            "between processes; expected one device or DDP, for example strategy='ddp'."
        )
    if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
        raise ArgumentError(
            f"{type(smoothness).__name__}: LBFGS computes the gradients several times in each step, and the penalties "
            "would be added each time; expected an optimizer that computes them once, for example torch.optim.AdamW."
        )
    if computed := smoothness.computed(pl_module):
        rank_zero_warn(
            f"{type(smoothness).__name__}: does not penalise {', '.join(computed)}, whose weights are computed from "
            "other parameters (by a parametrization, weight_norm or the like). Remove the reparametrization before "
            "training, or leave these layers out with skip=[...]."
        )
    if not smoothness.weights(pl_module, frozen=True):  # frozen layers count: they may train later
        raise ArgumentError(
            f"{type(smoothness).__name__}(layers={smoothness.layers}, skip={smoothness.skip}): no Linear or "
            f"ungrouped convolution of {type(pl_module).__name__} matches; expected patterns of dotted names such as "
            "'network.*', or of types such as 'Conv2d'."
        )
    smoothness.check_patterns(pl_module)


def regularize(
    smoothness: Smoothness,
    trainer: lightning.Trainer,
    pl_module: lightning.LightningModule,
    optimizer: Optimizer,
    *,
    step: int,
) -> None:
    """Add the gradients of the penalties before step number ``step`` (from 0) of ``optimizer``, and log the values.

    If no parameter has a gradient, nothing is added: the batch was skipped, and the step would not change the weights.

    Raises:
        ArgumentError: the optimizer unscales gradients itself, so that they are still scaled here.
    """
    if trainer.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ArgumentError(
            f"{type(smoothness).__name__} with Trainer(precision={trainer.precision!r}): the gradients of a fused "
            f"{type(optimizer).__name__} are still scaled before its step. Use fused=False, or precision='bf16-mixed'."
        )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if all(parameter.grad is None for parameter in trained):
        return
    values = smoothness.add_gradients(pl_module, step=step, epoch=trainer.current_epoch, trained=trained)
    number = _number(smoothness, trainer, pl_module)
    tags = {f"smoothness/{name}{number}": value for name, value in values.items()}
    pl_module.log_dict(tags, on_step=False, on_epoch=True, batch_size=1)


def log_spectrum(smoothness: Smoothness, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
    """Log the share of the energy in the largest quarter of the selected layers' singular values."""
    number = _number(smoothness, trainer, pl_module)
    pl_module.log(f"smoothness/spectrum_decay{number}", smoothness.spectrum_decay(pl_module))


def _number(smoothness: Smoothness, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> str:
    """A suffix for logged names, for the second of several and later ones: Lightning averages values of one name."""
    own = getattr(pl_module, "regularizers", None)
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    several = [each for each in [*(own if isinstance(own, list) else []), *callbacks] if isinstance(each, Smoothness)]
    place = several.index(smoothness)
    return f" {place + 1}" if place else ""
