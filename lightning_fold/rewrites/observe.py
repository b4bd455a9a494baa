"""Hooks that see the inputs and outputs of layers, for the length of a ``with`` block."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Hooks = Iterable[tuple[nn.Module, Callable[..., Any]]]


@contextmanager
def forward_hooks(hooks: Hooks) -> Iterator[None]:
    """Call ``hook(module, inputs, output)`` after each module runs, inside the block only."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def forward_pre_hooks(hooks: Hooks) -> Iterator[None]:
    """Call ``hook(module, args, kwargs)`` before each module runs, inside the block only."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
