"""Keep changed tensors beside a network without changing the network."""

from torch import Tensor, nn

from lightning_fold.surgery.editor import Editor
from lightning_fold.surgery.optimizers import Transform


class Overlay(Editor):
    """Keeps changed tensors beside the network.

    Attributes:
        changed: the changed tensors by dotted name; :func:`lightning_fold.inputs.call` runs the network with them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.changed: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """The current value of the tensor ``name``."""
        return self.changed[name] if name in self.changed else super().tensor(name)

    def transform(self, name: str, change: Transform, moments: Transform | None = None) -> None:
        """Store ``change(tensor)``; there is no optimizer state to transform."""
        self.changed[name] = change(self.tensor(name).detach())
