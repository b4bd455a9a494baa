"""Command-line parsers that report errors in one line with a hint."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_fold.commands.config_errors import summarise
from lightning_fold.commands.listing import HINT_FOR_KEYS, fail, hint_for


class Parser(LightningArgumentParser):
    """Reports a mistake in one line with a hint, and exits with code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report a mistake in the arguments or the configuration."""
        if not self.exit_on_error:
            super().error(message, ex)
        fail(summarise(message), hint_for(self.prog.partition(" ")[2]) or HINT_FOR_KEYS)


def command_parser(name: str, function: Callable[..., None]) -> Parser:
    """The parser of a command other than training: its options are the arguments of ``function``."""
    parser = Parser(prog=f"lightning-fold {name}", description=first_line(function))
    parser.add_function_arguments(function, as_positional=False, as_group=False)
    return parser


def first_line(function: Callable[..., None]) -> str:
    """The first paragraph of the function's docstring."""
    return cleandoc(function.__doc__ or "").partition("\n\n")[0]
