"""The commands by name."""

import inspect

import pytest

from lightning_fold.commands.listing import COMMANDS, TRAINING, fail, function_of, hint_for


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_a_function_whose_docstring_is_repeated_and_a_hint(name: str) -> None:
    function = function_of(name)
    assert inspect.getdoc(function).splitlines()[0] == COMMANDS[name][1]
    assert f"lightning-fold {name} --help" in hint_for(name)


def test_training_commands_have_neither() -> None:
    assert not TRAINING.keys() & COMMANDS.keys()
    assert all(hint_for(name) is None for name in TRAINING)


def test_mistake_is_two_lines_and_code_2(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        fail("found 3", "give 2")
    out, err = capsys.readouterr()
    assert (exit_info.value.code, out, err) == (2, "", "error: found 3\nhint: give 2\n")
