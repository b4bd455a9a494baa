"""Remember on each module what it was before it was rewritten, so that the rewrite can be undone.

These records are not part of the state dict; copies of a network include them.
"""

from copy import copy

import torch
from torch import Tensor, nn

_REPLACED = "_replaced_by_rewrite"
_BUILT = "_buffers_before_rewrite"
_CREATED = "_created_by_rewrite"


def replaced_by(module: nn.Module) -> nn.Module | None:
    """The original module that ``module`` replaced; ``None`` if there is none.

    Its tensors are on the meta device, except for non-persistent buffers, which no state dict can restore.
    """
    return vars(module).get(_REPLACED)


def remember_replaced(old: nn.Module, new: nn.Module) -> None:
    """Remember on ``new`` the original module at the place of ``old``."""
    before = replaced_by(old)
    first = _emptied(old) if before is None else before
    if type(first) is not type(new):
        vars(new)[_REPLACED] = first


def created_in(module: nn.Module) -> frozenset[str]:
    """The names of the parameters of ``module`` that were created by rewrites, not by its class."""
    return vars(module).get(_CREATED, frozenset())


def remember_created(module: nn.Module, names: frozenset[str]) -> None:
    """Remember ``names`` for :func:`created_in`."""
    vars(module)[_CREATED] = names


def as_built(module: nn.Module, leaf: str) -> Tensor | None:
    """The buffer ``leaf`` as the class of ``module`` builds it; ``None`` without :func:`keep_in_state_dict`."""
    return vars(module).get(_BUILT, {}).get(leaf)


def keep_in_state_dict(module: nn.Module, leaf: str) -> None:
    """Save a buffer from now on, because its class no longer builds the same one; remember the original."""
    module._non_persistent_buffers_set = module._non_persistent_buffers_set - {leaf}
    vars(module)[_BUILT] = vars(module).get(_BUILT, {}) | {leaf: module._buffers[leaf]}


def _emptied(module: nn.Module) -> nn.Module:
    twin = copy(module)
    vars(twin).update(
        _parameters={name: _on_meta(tensor) for name, tensor in module._parameters.items()},
        _buffers={name: _remembered(module, name) for name in module._buffers},
        _modules={name: child if child is None else _emptied(child) for name, child in module._modules.items()},
    )
    return twin


def _remembered(module: nn.Module, name: str) -> Tensor | None:
    """A buffer on the meta device, or a copy with its values if it is not part of the state dict."""
    buffer = module._buffers[name]
    if buffer is None or name not in module._non_persistent_buffers_set:
        return _on_meta(buffer)
    return buffer.detach().clone()


def _on_meta(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
