"""Module hooks: find those that compute a weight, and move the others when a module is replaced."""

from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

COMPUTED = (WeightNorm, SpectralNorm)  # forward pre-hooks that compute a weight

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def hooks_of(module: nn.Module, kinds: Any) -> list[tuple[int, Any]]:
    """The forward pre-hooks of ``module`` that are instances of ``kinds``, with their keys."""
    return [(key, hook) for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kinds)]


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Move the hook tables themselves, so that removal handles keep working; delete hooks that compute a weight."""
    for key, _ in hooks_of(old, (*COMPUTED, BasePruningMethod)):
        del old._forward_pre_hooks[key]
    for name in _HOOKS:
        table = vars(old)[name]
        table.update(vars(new)[name])
        vars(new)[name], vars(old)[name] = table, type(table)()
    if new._backward_hooks:
        new._is_full_backward_hook = old._is_full_backward_hook
