"""The command ``lightning-fold``. It prints help at once; slow imports happen only in the commands that need them."""

import sys
from difflib import get_close_matches
from typing import Any

import lightning_fold
from lightning_fold.commands.listing import ABOUT, COMMANDS, HINT_FOR_KEYS, TRAINING, fail, function_of, hint_for
from lightning_fold.errors import LightningFoldError


def main(args: Any = None) -> None:
    """Run the command.

    Args:
        args: Command-line arguments as a list of strings, or a configuration as LightningCLI accepts it; None uses
            the arguments of the process.

    Raises:
        SystemExit: Code 2 after a mistake in the arguments, the configuration or a path, reported on stderr.
    """
    words = args if isinstance(args, list) else sys.argv[1:] if args is None else []
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(f"usage: lightning-fold COMMAND [options]\n\n{ABOUT}\n\n{_listed()}")
    elif words[:1] == ["--version"]:
        sys.stdout.write(f"lightning-fold {lightning_fold.__version__}\n")
    else:
        if args is None or isinstance(args, list):
            _check_command(words)
        _run(words, args)


def _run(words: list[str], args: Any) -> None:
    from lightning_fold.commands.parser import command_parser
    from lightning_fold.remarks import silence

    silence()
    try:
        if words and words[0] in COMMANDS:
            function = function_of(words[0])
            function(**vars(command_parser(words[0], function).parse_args(words[1:])))
        else:
            from lightning_fold.commands.fit.training import run_lightning

            run_lightning(args)
    except (LightningFoldError, OSError, RuntimeError) as error:
        explained = isinstance(error, (LightningFoldError, OSError)) or _is_of_other_network(error)
        if not explained:
            raise
        fail(_one_line(error), _hint(error, words))


def _listed() -> str:
    """All commands, each with a one-line description."""
    known = TRAINING | {name: about for name, (_, about) in COMMANDS.items()}
    lines = [f"  {name:<9} {about}\n" for name, about in known.items()]
    return f"commands:\n{''.join(lines)}\n'lightning-fold COMMAND --help' lists the options of each.\n"


def _check_command(words: list[str]) -> None:
    """Report a missing or unknown command; Lightning handles options before it, as in ``--config FILE fit``."""
    known = [*TRAINING, *COMMANDS]
    if words and (words[0] in known or words[0].startswith("-")):
        return
    close = get_close_matches(words[0], known, n=2) if words else []
    advice = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; expected one of {', '.join(known)}"
    sys.stderr.write(_listed() + "\n")
    fail((f"there is no command {words[0]!r}" if words else "no command is given") + advice, HINT_FOR_KEYS)


def _hint(error: Exception, words: list[str]) -> str:
    """Advice on where to look after ``error`` ended the command ``words``."""
    if isinstance(error, FileNotFoundError):
        return "check the paths in the configuration and on the command line"
    if isinstance(error, OSError):
        return "check the paths in the configuration and on the command line, and the free disk space"
    return hint_for(words[0] if words else "") or "'lightning-fold fit --print_config' shows the whole configuration"


def _is_of_other_network(error: Exception) -> bool:
    """Whether torch rejected a state dict, which LightningCLI loads after building everything."""
    return "loading state_dict" in str(error)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    if not _is_of_other_network(error):
        return " ".join(lines)
    return f"the checkpoint belongs to another network: {' '.join(lines[1:2])} ({len(lines) - 1} such differences)"
