"""What a network is called with: a tensor, a tuple of positional inputs, or a dict of inputs by name."""

from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


def as_arguments(example_inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``example_inputs`` as positional arguments and arguments by name."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}


def as_inputs(example_inputs: Inputs) -> tuple[Any, ...]:
    """``example_inputs`` as the tuple of positional inputs that the network is called with.

    Raises:
        ValueError: they are given by name.
    """
    args, kwargs = as_arguments(example_inputs)
    if kwargs:
        raise ValueError(
            f"found inputs by name ({', '.join(kwargs)}) where they are needed in order; expected a tensor or a tuple."
        )
    return args


def call(model: nn.Module, example_inputs: Inputs, replaced: dict[str, Tensor] | None = None) -> Any:
    """What ``model`` returns for ``example_inputs``, with other tensors in the place of those named in ``replaced``."""
    args, kwargs = as_arguments(example_inputs)
    if replaced is None:
        return model(*args, **kwargs)
    # Not tied by torch: in a module that is registered under two names it would leave the other tensors behind.
    return functional_call(model, _everywhere(model, replaced), args, kwargs, tie_weights=False)


def _everywhere(model: nn.Module, replaced: dict[str, Tensor]) -> dict[str, Tensor]:
    """``replaced`` under one name for every module that holds such a tensor, tied ones too."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    values = {id(tensors[name]): value for name, value in replaced.items()}
    places = {
        f"{path}.{leaf}".removeprefix("."): tensor
        for path, module in model.named_modules()
        for leaf, tensor in chain(module._parameters.items(), module._buffers.items())
    }
    return {name: values[id(tensor)] for name, tensor in places.items() if id(tensor) in values}


def first_examples(example_inputs: Inputs, count: int) -> Inputs:
    """``example_inputs`` with at most ``count`` examples in every tensor, batch first."""
    return tree_map(lambda v: v[:count] if isinstance(v, Tensor) and v.dim() else v, example_inputs)
