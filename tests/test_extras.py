"""Packages that only some functions need."""

import pytest

from lightning_fold.errors import MissingPackageError
from lightning_fold.extras import require


def test_installed_packages_pass() -> None:
    require("f()")
    require("f()", "torch", "json")


def test_missing_ones_alone_are_named_with_the_command() -> None:
    with pytest.raises(MissingPackageError) as error:
        require("f()", "torch", "no_such_a", "no_such_b", extra="timm")
    text = str(error.value)
    assert text.startswith("f()") and "no_such_a, no_such_b" in text and "pip install 'lightning-fold[timm]'" in text
    assert "torch" not in text
