"""SmoothnessRegularization: penalties on the weights while any LightningModule trains."""

import lightning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import Optimizer

from lightning_fold.regularizers import Smoothness, spectrum_decay


class SmoothnessRegularization(Smoothness, lightning.Callback):
    """Trains weights that factorize, fold and prune with less loss, without a change of the module or its loss.

    Before an optimizer step, after gradients are unscaled and reduced and before they are clipped, the gradients of the
    penalties are added, once per step under accumulation. After a rewrite it goes on with the layers that are there.
    Logs, averaged over the epoch, each penalty without its strength as ``smoothness/<penalty>``, and at the epoch's
    end ``smoothness/spectrum_decay``: the share of the energy in the largest quarter of the singular values.

    Suggested: the nuclear norm before LowRankFactorization, with a warm-up. What counts is learning rate x strength x
    steps: 0.005 was best for 1,200 steps at 0.05 with momentum 0.9, so take less for long training. Too much costs
    accuracy of the dense network. It does not help layers that are left alone afterwards: skip
    them. With Adam a penalty is divided by the size of the gradients, so weights that hardly get any feel it most.

    Source: "Smooth Model Compression without Fine-Tuning" (arXiv 2505.24469).
    """

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse strategies that split the weights; say so if no layer matches."""
        check_regularization(self, trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradients of the penalties."""
        regularize(self, trainer, pl_module, optimizer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log how fast the spectrum decays."""
        log_spectrum(self, pl_module)


def check_regularization(
    smoothness: Smoothness, trainer: lightning.Trainer, pl_module: lightning.LightningModule
) -> None:
    """Refuse what ``smoothness`` cannot train with.

    Raises:
        ValueError: the strategy splits the weights, no layer of the module is selected, or a pattern matches none.
    """
    whole = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if not whole or trainer.strategy.restore_checkpoint_after_setup:  # DeepSpeed is a DDPStrategy too
        raise ValueError(
            f"{type(smoothness).__name__}: Trainer(strategy={type(trainer.strategy).__name__}) may split the weights "
            "between processes; expected one device or DDP, for example strategy='ddp'."
        )
    if not smoothness.weights(pl_module):
        raise ValueError(
            f"{type(smoothness).__name__}(layers={smoothness.layers}, skip={smoothness.skip}): no trained Linear or "
            f"ungrouped convolution of {type(pl_module).__name__} matches; expected patterns of dotted names such as "
            "'network.*', or of types such as 'Conv2d'."
        )
    smoothness.check_patterns(pl_module)


def regularize(
    smoothness: Smoothness, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
) -> None:
    """Add the gradients of the penalties before a step of ``optimizer``, and log the values.

    Raises:
        ValueError: the optimizer unscales gradients itself, so that they are still scaled here.
    """
    if trainer.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            f"{type(smoothness).__name__} with Trainer(precision={trainer.precision!r}): the gradients of a fused "
            f"{type(optimizer).__name__} are still scaled before its step. Use fused=False, or precision='bf16-mixed'."
        )
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    step = trainer.global_step // len(trainer.optimizers)
    values = smoothness.add_gradients(pl_module, step=step, epoch=trainer.current_epoch, trained=trained)
    tags = {f"smoothness/{name}": value for name, value in values.items()}
    pl_module.log_dict(tags, on_step=False, on_epoch=True, batch_size=1)


def log_spectrum(smoothness: Smoothness, pl_module: lightning.LightningModule) -> None:
    """Log the share of the energy in the largest quarter of the singular values of the layers selected."""
    pl_module.log("smoothness/spectrum_decay", spectrum_decay(smoothness.weights(pl_module)))
