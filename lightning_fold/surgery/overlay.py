"""Changed tensors kept beside a network that is not touched."""

from torch import Tensor, nn

from lightning_fold.surgery.editor import Editor
from lightning_fold.surgery.optimizers import Transform


class Overlay(Editor):
    """Keeps changed tensors beside the network.

    Attributes:
        changed: by dotted name, for :func:`lightning_fold.inputs.call` to run the network with.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.changed: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name`` as it is by now."""
        return self.changed[name] if name in self.changed else super().tensor(name)

    def transform(self, name: str, change: Transform, moments: Transform | None = None) -> None:
        """Keep ``change(tensor)``; a network beside which tensors are kept has no optimizer state to follow."""
        self.changed[name] = change(self.tensor(name).detach())
