"""Parsers of the commands."""

import pytest

from lightning_fold.commands.parser import Parser, command_parser, first_line


def _command(path: str, count: int = 1, names: list[str] | None = None) -> None:
    """Do it.

    Args:
        path: where.
        count: how often.
        names: of what.
    """


def test_options_are_the_arguments_of_the_function() -> None:
    parsed = command_parser("export", _command).parse_args(["--path", "x", "--names", "[a, b]"])
    assert (parsed.path, parsed.count, parsed.names) == ("x", 1, ["a", "b"])


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--path", "x", "--count", "y"], "count"), (["--count", "2"], "path"), (["--path", "x", "--cou", "2"], "cou")],
)
def test_mistake_names_the_option_and_the_help(capsys, words: list[str], named: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command_parser("export", _command).parse_args(words)
    error, hint = capsys.readouterr().err.splitlines()
    assert exit_info.value.code == 2 and named in error and "lightning-fold export --help" in hint


def test_error_can_be_raised_in_place_of_an_exit() -> None:
    parser = Parser(exit_on_error=False)
    parser.add_argument("--count", type=int)
    with pytest.raises(Exception, match="count") as error:
        parser.parse_args(["--count", "x"])
    assert not isinstance(error.value, SystemExit)


def test_first_line_is_the_first_paragraph() -> None:
    assert first_line(_command) == "Do it." and first_line(lambda: None) == ""
