"""What a whole method is: prune, fold and factorize are some."""

from typing import Any, Protocol

from torch import nn

from lightning_fold.inputs import Inputs
from lightning_fold.report import RewriteReport


class Method(Protocol):
    """A function, or an object that is called like one, that makes a network smaller.

    Commands pass ``keep``, and of ``of``, ``batches``, ``skip`` and ``repair`` what they are asked for, if the method
    names such arguments.
    """

    def __call__(self, model: nn.Module, example_inputs: Inputs, /, **options: Any) -> RewriteReport:
        """Rewrite ``model``, in place."""
        ...
