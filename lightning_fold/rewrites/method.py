"""The interface of a method; prune, fold and factorize are methods."""

from typing import Any, Protocol

from torch import nn

from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport


class Method(Protocol):
    """A function or a callable object that makes a network smaller.

    Commands pass ``keep``. They pass ``of``, ``batches``, ``skip`` and ``repair`` if the user sets them and the method
    has such arguments.
    """

    def __call__(self, model: nn.Module, example_inputs: Inputs, /, **options: Any) -> RewriteReport:
        """Rewrite ``model``, in place."""
        ...
