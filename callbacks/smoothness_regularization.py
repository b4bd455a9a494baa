"""SmoothnessRegularization: penalties on the weights while any LightningModule trains."""

from typing import Any

import lightning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import LBFGS, Optimizer

from lightning_fold.errors import ArgumentError
from lightning_fold.regularizers import Smoothness


class SmoothnessRegularization(Smoothness, lightning.Callback):
    """Trains weights that factorize, fold and prune with less loss, without a change of the module or its loss.

    Before an optimizer step, after gradients are unscaled and reduced, the gradients of the penalties are added, once
    per step under accumulation. ``Trainer(gradient_clip_val=...)`` clips them too; ``self.clip_gradients`` of manual
    optimization comes before and does not. Optimizers that step more or less often are each counted for themselves.
    After a rewrite it goes on with the layers that are there; frozen ones join once they train.

    Logs, averaged over the epoch, each penalty without its strength as ``smoothness/<penalty>``, and at the epoch's
    end ``smoothness/spectrum_decay``: the share of the energy in the largest quarter of the singular values. The second
    of several, a module's own ``regularizers`` first, logs as ``smoothness/nuclear_norm 2`` and so on.

    Suggested: the nuclear norm before LowRankFactorization or ChannelFolding, with a warm-up. What counts is learning
    rate x strength x steps: 0.005 was best for 1,200 steps at 0.05 with momentum 0.9, so take less for long training.
    Too much costs accuracy of the dense network. It does not help layers that are left alone afterwards: skip them.
    With Adam a penalty is divided by the size of the gradients, so weights that hardly get any feel it most.

    Source: "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469).
    """

    _steps: tuple[int, ...] = ()  # of each optimizer

    @property
    def state_key(self) -> str:
        """Where checkpoints keep the state: there may be several, with penalties for layers of their own."""
        return self._generate_state_key(**self.arguments())

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse what the penalties cannot train with, and say so if no layer matches."""
        check_regularization(self, trainer, pl_module)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count the steps of each optimizer, unless a checkpoint has brought the counts."""
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
        """Log how fast the spectrum decays."""
        log_spectrum(self, trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps that each optimizer has done."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where an interrupted run has stopped."""
        self._steps = tuple(state_dict["steps"])


def check_regularization(
    smoothness: Smoothness, trainer: lightning.Trainer, pl_module: lightning.LightningModule
) -> None:
    """Refuse what ``smoothness`` cannot train with, and name the layers that it leaves out.

    Raises:
        ValueError: the strategy splits the weights, an optimizer is LBFGS, no layer of the module is selected, or a
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
            "would be added each time; expected an optimizer that does so once, for example torch.optim.AdamW."
        )
    if computed := smoothness.computed(pl_module):
        rank_zero_warn(
            f"{type(smoothness).__name__}: does not penalise {', '.join(computed)}, whose weights are computed from "
            "other parameters (by a parametrization, weight_norm or the like). Write these out before training, or "
            "leave the layers out by skip=[...]."
        )
    if not smoothness.weights(pl_module, frozen=True):  # frozen now, perhaps not for long
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
    """Add the gradients of the penalties before step number ``step`` of ``optimizer``, from 0, and log the values.

    Nothing is added where there is no gradient yet: the batch was skipped, and the step would leave the weights alone.

    Raises:
        ValueError: the optimizer unscales gradients itself, so that they are still scaled here.
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
    """Log the share of the energy in the largest quarter of the singular values of the layers selected."""
    number = _number(smoothness, trainer, pl_module)
    pl_module.log(f"smoothness/spectrum_decay{number}", smoothness.spectrum_decay(pl_module))


def _number(smoothness: Smoothness, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> str:
    """What the second of several has behind the names that it logs: of values of one name Lightning logs the mean."""
    own = getattr(pl_module, "regularizers", None)
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    several = [each for each in [*(own if isinstance(own, list) else []), *callbacks] if isinstance(each, Smoothness)]
    place = several.index(smoothness)
    return f" {place + 1}" if place else ""
