"""fit, validate, test and predict: LightningCLI with this package's defaults."""

from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from rich.console import Console

import lightning_fold.data
import lightning_fold.modules  # noqa: F401  both are imported so that the command's help lists their classes
from lightning_fold.commands.fit.epoch_lines import EpochLines
from lightning_fold.commands.fit.summary import summarise_run
from lightning_fold.commands.listing import ABOUT
from lightning_fold.commands.parser import Parser
from lightning_fold.storage.files import read_checkpoint

TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "", "default_hp_metric": False},
    }
}


class FoldCLI(LightningCLI):
    """LightningCLI whose model is a ``Classifier`` unless another LightningModule is named."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make ``Classifier`` the default model."""
        parser.set_defaults({"model": {"class_path": "lightning_fold.modules.Classifier"}})

    def _parse_ckpt_path(self) -> None:
        """Read the network's arguments from the checkpoint, after checking that it is one."""
        path = Path(getattr(getattr(self.config, self.config.subcommand, self.config), "ckpt_path", None) or "")
        if path.is_file():
            read_checkpoint(path)
        super()._parse_ckpt_path()

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; report a value that a constructor refuses like any other wrong value."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            self.parser.error(str(error), error)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Build the trainer; if ``fit`` does not write to a terminal, one line per epoch replaces the progress bar."""
        settings = self._get(self.config_init, "trainer", default={})
        if self.subcommand != "fit" or Console().is_terminal or settings.get("fast_dev_run"):
            return super().instantiate_trainer(**kwargs)
        callbacks = settings.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if settings.get("enable_progress_bar") is None and not has_bar:
            kwargs["enable_progress_bar"] = False
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": EpochLines()}
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Write and measure the dense and the compressed network, and print where the files are."""
        if getattr(self.trainer, "fast_dev_run", False) or self.trainer.interrupted:
            return
        summary = summarise_run(self.trainer, self.model, self.datamodule)
        if summary is not None and self.trainer.is_global_zero:
            Console().print(summary.table(), summary.places(), sep="\n")


def run_lightning(args: ArgsType) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``, with LightningCLI's arguments."""
    FoldCLI(
        lightning.LightningModule,
        lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        parser_class=Parser,
        parser_kwargs={"description": ABOUT},
        args=args,
    )
