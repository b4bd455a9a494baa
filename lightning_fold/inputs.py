"""The inputs of a network: a tensor, a tuple of positional inputs, or a dict of inputs by name."""

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lightning_fold.errors import ArgumentError

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


def as_arguments(example_inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``example_inputs`` as positional and keyword arguments."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}


def as_inputs(example_inputs: Inputs) -> tuple[Any, ...]:
    """``example_inputs`` as a tuple of positional inputs of the network.

    Raises:
        ArgumentError: they are given by name.
    """
    args, kwargs = as_arguments(example_inputs)
    if kwargs:
        raise ArgumentError(
            f"found inputs by name ({', '.join(kwargs)}), but positional inputs are needed; expected a tensor or tuple."
        )
    return args


def call(model: nn.Module, example_inputs: Inputs, replaced: dict[str, Tensor] | None = None) -> Any:
    """The output of ``model`` for ``example_inputs``; ``replaced`` temporarily replaces tensors by dotted name."""
    args, kwargs = as_arguments(example_inputs)
    if replaced is None:
        return model(*args, **kwargs)
    # Without torch's own tying: in a module registered under two names, it would leave the replacements in place.
    return functional_call(model, _everywhere(model, replaced), args, kwargs, tie_weights=False)


def _everywhere(model: nn.Module, replaced: dict[str, Tensor]) -> dict[str, Tensor]:
    """``replaced`` under one name per module that holds the tensor, including tied tensors."""
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


def inputs_of_batch(batch: Any, like: Inputs | None = None) -> Inputs:
    """The network's inputs in a batch of data; targets may follow them or have names of their own.

    Args:
        batch: inputs, (inputs, ...), or a mapping.
        like: example inputs of the network. The same number of elements, or the same names, are read from the batch
            (for one named input and a batch without names, its first element). ``None`` reads one element.

    Raises:
        ArgumentError: the batch does not contain such inputs, or one of them contains NaN or infinity.
    """
    if isinstance(like, dict) and (len(like) > 1 or isinstance(batch, Mapping)):
        found: Inputs = _by_name(batch, like)
    else:
        parts = _in_order(batch, len(like) if isinstance(like, tuple) else 1)
        found = dict(zip(like, parts, strict=True)) if isinstance(like, dict) else parts
    for value in tree_leaves(found):
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            shape = tuple(value.shape)
            raise ArgumentError(f"expected finite inputs, found NaN or infinity in an input of shape {shape}.")
    return found


def inputs_for(model: nn.Module, batch: Any, like: Inputs | None = None) -> Inputs:
    """The inputs of ``model`` in a batch of data, on the device of ``model``.

    Args:
        model: the network.
        batch: inputs, (inputs, ...), or a mapping. Without ``like``, the signature of ``forward`` decides what is
            read: the number of required arguments (at least one), or for a mapping the names of the arguments.
        like: example inputs of the network; their number or names then decide instead.

    Raises:
        ArgumentError: the batch does not contain such inputs, or one of them contains NaN or infinity.
    """
    if like is None:
        parameters = signature(model.forward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if isinstance(batch, Mapping):
            taken = {p.name for p in named if p.default is p.empty or p.name in batch}
            anything = any(p.kind == p.VAR_KEYWORD for p in parameters)
            like = dict.fromkeys(batch if anything else [p.name for p in named if p.name in taken])
        else:
            like = tuple(None for p in named if p.default is p.empty and p.kind != p.KEYWORD_ONLY) or None
    found = inputs_of_batch(batch, like)
    return on_device(found, device_of(model))


def _by_name(batch: Any, like: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(batch, Mapping) or not all(name in batch for name in like):
        names = f"with {', '.join(batch)}" if isinstance(batch, Mapping) else f"of type {type(batch).__name__}"
        raise ArgumentError(f"expected batches that are mappings with {', '.join(like)}, found one {names}.")
    return {name: batch[name] for name in like}


def _in_order(batch: Any, count: int) -> tuple[Any, ...]:
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) < count or not any(isinstance(value, Tensor) for value in tree_leaves(parts[:count])):
        first = "inputs" if count == 1 else f"{count} inputs"
        of = f" of {len(parts)}" if isinstance(batch, (tuple, list)) else ""
        raise ArgumentError(f"expected batches of ({first}, ...), found a {type(batch).__name__}{of}.")
    return parts[:count]


def join_inputs(parts: Sequence[Inputs]) -> Inputs | None:
    """Several batches joined into one; ``None`` if their shapes differ in more than the batch size."""
    flat = [tree_flatten(inputs) for inputs in parts]
    if any(spec != flat[0][1] for _, spec in flat):
        return None
    sizes = [batch_size(inputs) for inputs in parts]
    leaves = []
    for values in zip(*(leaves for leaves, _ in flat), strict=True):
        batched = [is_batched(value, size) for value, size in zip(values, sizes, strict=True)]
        if not any(batched):
            leaves.append(values[0])
        elif all(batched) and len({value.shape[1:] for value in values}) == 1:
            leaves.append(torch.cat(values))
        else:
            return None
    return tree_unflatten(leaves, flat[0][1])


def on_device(inputs: Inputs, device: torch.device | str) -> Inputs:
    """``inputs`` with every tensor on ``device``."""
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, inputs)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of ``model``; the CPU if it has none."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def batch_size(inputs: Inputs) -> int:
    """The number of examples: the first dimension of the first non-scalar tensor; -1 if there is none."""
    return next((v.shape[0] for v in tree_leaves(inputs) if isinstance(v, Tensor) and v.dim()), -1)


def is_batched(value: Any, size: int) -> bool:
    """Whether ``value`` is a tensor of ``size`` examples."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size


def only_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of a linear layer or convolution, passed by position or by name."""
    return args[0] if args else kwargs["input"]


def first_examples(example_inputs: Inputs, count: int) -> Inputs:
    """At most ``count`` of the examples; tensors without the batch dimension, such as masks, are kept whole."""
    size = batch_size(example_inputs)
    return tree_map(lambda value: value[:count] if is_batched(value, size) else value, example_inputs)


def few_examples(example_inputs: Inputs) -> Inputs:
    """Two examples of ``example_inputs``; all of them if the tensors differ in their first dimension."""
    sizes = {value.shape[0] for value in tree_leaves(example_inputs) if isinstance(value, Tensor) and value.dim()}
    return first_examples(example_inputs, 2) if len(sizes) == 1 else example_inputs
