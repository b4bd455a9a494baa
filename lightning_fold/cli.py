"""The command ``lightning-fold``: LightningCLI for training, and the commands after it, with short error messages."""

import sys
from collections.abc import Callable
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from typing import Any, NoReturn

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from rich.console import Console

import lightning_fold.data
import lightning_fold.modules  # noqa: F401  both imported so that the command's help lists their classes
from lightning_fold.commands import compare, compress, export_network
from lightning_fold.commands.config_errors import summarise
from lightning_fold.commands.summary import summarise_run
from lightning_fold.errors import LightningFoldError
from lightning_fold.remarks import silence
from lightning_fold.storage.files import read_checkpoint

TRAINER_DEFAULTS: dict[str, Any] = {
    "logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "runs", "name": "", "default_hp_metric": False},
    }
}

# The commands that need no Trainer, by name; their arguments are those of the functions.
COMMANDS = {"compress": compress, "compare": compare, "export": export_network}

_TRAINING = {
    "fit": "Train a network, compress it with the callbacks of a configuration, and measure dense against compressed.",
    "validate": "Measure a checkpoint on the validation data.",
    "test": "Measure a checkpoint on the test data.",
    "predict": "Run a checkpoint on the data for predictions.",
}
_ABOUT = "Train networks with PyTorch Lightning and make them much smaller."
_HINT_FOR_KEYS = (
    "'lightning-fold --help' lists the commands, 'lightning-fold fit --help' the keys, 'lightning-fold fit "
    "--model.help CLASS_PATH' (or --data.help, --trainer.callbacks.help) those of a class"
)
_HINTS = {name: f"'lightning-fold {name} --help' lists the options" for name in COMMANDS}


class Parser(LightningArgumentParser):
    """Reports a mistake in one line with a hint, and exits with code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a mistake in the arguments or the configuration."""
        if not self.exit_on_error:
            super().error(message, ex)
        _fail(summarise(message), _HINTS.get(self.prog.partition(" ")[2], _HINT_FOR_KEYS))


class FoldCLI(LightningCLI):
    """LightningCLI whose model is a ``Classifier`` unless another LightningModule is named."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make ``Classifier`` the default model."""
        parser.set_defaults({"model": {"class_path": "lightning_fold.modules.Classifier"}})

    def _parse_ckpt_path(self) -> None:
        """Read the arguments of the network from the checkpoint, once it is known to be one."""
        path = Path(getattr(getattr(self.config, self.config.subcommand, self.config), "ckpt_path", None) or "")
        if path.is_file():
            read_checkpoint(path)
        super()._parse_ckpt_path()

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a value that a constructor refuses is reported like any wrong value."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            self.parser.error(str(error), error)

    def after_fit(self) -> None:
        """Measure the dense and the compressed network, write both, and say where everything lies."""
        if getattr(self.trainer, "fast_dev_run", False) or self.trainer.interrupted:
            return
        summary = summarise_run(self.trainer, self.model, self.datamodule)
        if summary is not None and self.trainer.is_global_zero:
            Console().print(summary.table(), summary.places(), sep="\n")


def main(args: ArgsType = None) -> None:
    """Run the command.

    Args:
        args: Command-line arguments as a list of strings; None takes those of the process.

    Raises:
        SystemExit: Code 2 after a mistake in the arguments, the configuration or a path, reported on stderr.
    """
    silence()
    words = args if isinstance(args, list) else sys.argv[1:] if args is None else []
    try:
        if words[:1] in (["-h"], ["--help"]):
            sys.stdout.write(f"usage: lightning-fold COMMAND [options]\n\n{_ABOUT}\n\n{_listed()}")
        elif words and words[0] in COMMANDS:
            COMMANDS[words[0]](**vars(command_parser(words[0]).parse_args(words[1:])))
        else:
            if args is None or isinstance(args, list):
                _check_command(words)
            _run_lightning(args)
    except (LightningFoldError, OSError, RuntimeError) as error:
        explained = isinstance(error, (LightningFoldError, OSError)) or _is_of_other_network(error)
        if not explained:
            raise
        _fail(_one_line(error), _hint(error, words))


def command_parser(name: str) -> Parser:
    """The parser of a command after training: its options are the arguments of the command's function."""
    function = COMMANDS[name]
    parser = Parser(prog=f"lightning-fold {name}", description=_first_line(function))
    parser.add_function_arguments(function, as_positional=False, as_group=False)
    return parser


def _first_line(function: Callable[..., None]) -> str:
    return cleandoc(function.__doc__ or "").partition("\n\n")[0]


def _listed() -> str:
    """Every command with what it does."""
    known = _TRAINING | {name: _first_line(function) for name, function in COMMANDS.items()}
    lines = [f"  {name:<9} {does}\n" for name, does in known.items()]
    return f"commands:\n{''.join(lines)}\n'lightning-fold COMMAND --help' lists the options of each.\n"


def _check_command(words: list[str]) -> None:
    """Report a command that is missing or unknown; options before it, as in ``--config FILE fit``, are Lightning's."""
    known = [*_TRAINING, *COMMANDS]
    if words and (words[0] in known or words[0].startswith("-")):
        return
    close = get_close_matches(words[0], known, n=2) if words else []
    advice = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; expected one of {', '.join(known)}"
    sys.stderr.write(_listed() + "\n")
    _fail((f"there is no command {words[0]!r}" if words else "no command is given") + advice, _HINT_FOR_KEYS)


def _run_lightning(args: ArgsType) -> None:
    FoldCLI(
        lightning.LightningModule,
        lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_defaults=TRAINER_DEFAULTS,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        parser_class=Parser,
        parser_kwargs={"description": _ABOUT},
        args=args,
    )


def _hint(error: Exception, words: list[str]) -> str:
    """Where to look after ``error``, which ended the command of these words."""
    if isinstance(error, FileNotFoundError):
        return "check the paths in the configuration and on the command line"
    if isinstance(error, OSError):
        return "check the paths in the configuration and on the command line, and the space on the disk"
    shown = "'lightning-fold fit --print_config' shows the whole configuration"
    return _HINTS.get(words[0], shown) if words else shown


def _is_of_other_network(error: Exception) -> bool:
    """Whether torch refused a state dict, which LightningCLI loads after everything was built."""
    return "loading state_dict" in str(error)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    if not _is_of_other_network(error):
        return " ".join(lines)
    return f"the checkpoint is that of another network: {' '.join(lines[1:2])} ({len(lines) - 1} such differences)"


def _fail(message: str, hint: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\nhint: {hint}\n")
    sys.exit(2)
