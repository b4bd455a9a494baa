"""A multi-layer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_fold.errors import ArgumentError


class MLP(nn.Module):
    """Fully-connected network: flatten, then linear layers with an activation between them.

    Args:
        in_features: Values per example after flattening, for example 784 for 28 x 28 greyscale images; at least 1.
        hidden: Width of each hidden layer, each at least 1; empty for a linear classifier.
        out_features: Values per example in the output (the number of classes); at least 1.
        activation: Name of a parameter-free class in ``torch.nn``, such as "ReLU", "GELU" or "Tanh".
        input_dropout: Share of the input values set to zero in training, in [0, 1).

    Raises:
        ArgumentError: A width is not a positive integer, input_dropout is out of range, or ``torch.nn`` has no such
            activation.

    Shape:
        ``(batch, ...)`` with ``in_features`` values per example -> ``(batch, out_features)``.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        activation: str = "ReLU",
        input_dropout: float = 0.0,
    ) -> None:
        widths = [in_features, *hidden, out_features]
        if not all(isinstance(width, int) and width >= 1 for width in widths):
            raise ArgumentError(
                f"MLP(in_features={in_features!r}, hidden={hidden!r}, out_features={out_features!r}): "
                "every width must be an integer of at least 1"
            )
        activation_class = getattr(nn, activation, None)
        if not (isinstance(activation_class, type) and issubclass(activation_class, nn.Module)):
            raise ArgumentError(
                f"MLP(activation={activation!r}): torch.nn has no such module; give a class name such as 'ReLU'"
            )
        if not 0 <= input_dropout < 1:
            raise ArgumentError(f"MLP(input_dropout={input_dropout!r}): expected a share in [0, 1)")
        layers: list[nn.Module] = [nn.Flatten(), *([nn.Dropout(input_dropout)] if input_dropout else [])]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), activation_class()]
        super().__init__()
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        return self.layers(x)
