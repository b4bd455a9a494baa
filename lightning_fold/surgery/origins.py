"""What the modules of a network were before they were rewritten, remembered on them for the way back.

It is no part of a state dict; copies of a network have it too.
"""

from copy import copy

import torch
from torch import Tensor, nn

_REPLACED = "_replaced_by_rewrite"
_BUILT = "_buffers_before_rewrite"
_CREATED = "_created_by_rewrite"


def replaced_by(module: nn.Module) -> nn.Module | None:
    """The module that ``module`` first stands in the place of; ``None`` for none.

    Its tensors are on the meta device, except for the buffers that no state dict brings back.
    """
    return vars(module).get(_REPLACED)


def remember_replaced(old: nn.Module, new: nn.Module) -> None:
    """Remember on ``new`` what stood first where it takes the place of ``old``."""
    before = replaced_by(old)
    first = _emptied(old) if before is None else before
    if type(first) is not type(new):
        vars(new)[_REPLACED] = first


def created_in(module: nn.Module) -> frozenset[str]:
    """The names of the parameters that rewrites have given ``module``, which its class has built without."""
    return vars(module).get(_CREATED, frozenset())


def remember_created(module: nn.Module, names: frozenset[str]) -> None:
    """Remember ``names`` for :func:`created_in`."""
    vars(module)[_CREATED] = names


def as_built(module: nn.Module, leaf: str) -> Tensor | None:
    """The buffer ``leaf`` as the class of ``module`` builds it, where :func:`keep_in_state_dict` was called for it."""
    return vars(module).get(_BUILT, {}).get(leaf)


def keep_in_state_dict(module: nn.Module, leaf: str) -> None:
    """A buffer that is no longer what its class builds must be saved; what was built is remembered for a way back."""
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
    """A buffer without its values, and with them where no state dict brings them back."""
    buffer = module._buffers[name]
    if buffer is None or name not in module._non_persistent_buffers_set:
        return _on_meta(buffer)
    return buffer.detach().clone()


def _on_meta(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
