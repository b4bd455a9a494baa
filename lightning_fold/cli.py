"""The command ``lightning-fold``: LightningCLI with this package's defaults and short error messages."""

import sys
import warnings
from typing import Any, NoReturn

import lightning
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_fold.data import ClassificationDataModule  # noqa: F401

TRAINER_DEFAULTS = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": ""},
    }
}


class Parser(LightningArgumentParser):
    """Reports an error in one line with a hint, and exits with code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report."""
        sys.stderr.write("MSG<<" + message + ">>\n")
        if ex:
            sys.stderr.write(repr(ex) + repr(ex.__cause__) + repr(ex.__context__))
        sys.exit(2)


class FoldCLI(LightningCLI):
    """LightningCLI whose model is a ``Classifier`` unless another LightningModule is named."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make ``Classifier`` the default model."""
        parser.set_defaults({"model": {"class_path": "lightning_fold.modules.Classifier"}})

    def after_fit(self) -> None:
        """Run after ``fit``."""


def main(args: ArgsType = None) -> None:
    """Run the command."""
    FoldCLI(
        lightning.LightningModule,
        lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        parser_class=Parser,
        args=args,
    )
