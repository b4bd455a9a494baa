"""Errors: each is caught as this package's and as the built-in one that a reader expects."""

import inspect

import pytest

from lightning_fold import errors

BUILT_IN = {
    "ArgumentError": ValueError,
    "ArgumentTypeError": TypeError,
    "TraceError": ValueError,
    "RewriteError": RuntimeError,
    "FileError": OSError,
    "MissingFileError": FileNotFoundError,
    "MissingPackageError": ModuleNotFoundError,
    "CheckoutError": ImportError,
}


@pytest.mark.parametrize(("name", "built_in"), BUILT_IN.items())
def test_error_is_caught_under_both_names(name: str, built_in: type[Exception]) -> None:
    for caught in (errors.LightningFoldError, built_in):
        with pytest.raises(caught, match="found 3"):
            raise getattr(errors, name)("found 3")


def test_every_error_is_in_the_list() -> None:
    defined = {name for name, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__}
    assert defined == {*BUILT_IN, "LightningFoldError"}
