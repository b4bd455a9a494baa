"""Hooks that see what the layers of a network are called with, and what they give, for one block of code."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Hooks = Iterable[tuple[nn.Module, Callable[..., Any]]]


@contextmanager
def forward_hooks(hooks: Hooks) -> Iterator[None]:
    """Call ``hook(module, inputs, output)`` for each (module, hook) behind the module, inside the block only."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def forward_pre_hooks(hooks: Hooks) -> Iterator[None]:
    """Call ``hook(module, args, kwargs)`` for each (module, hook) in front of the module, inside the block only."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
