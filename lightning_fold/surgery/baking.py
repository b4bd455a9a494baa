"""Convert masks, parametrizations and weight hooks to plain weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import Optimizer

from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.surgery.editor import NetworkEditor
from lightning_fold.surgery.hooks import COMPUTED, hooks_of
from lightning_fold.surgery.optimizers import rebind


def bake(editor: NetworkEditor) -> None:
    """Replace masks, parametrizations and weight hooks permanently by the plain weights that they compute.

    These are ``torch.nn.utils.prune``, ``torch.nn.utils.parametrize`` (weight_norm, spectral_norm, ...) and the
    older hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm``. The optimizer state of masked weights is
    kept; other computed weights start without state, in the parameter group of the tensors they were computed from.
    """
    computed = [module for module in editor.model.modules() if is_parametrized(module) or hooks_of(module, COMPUTED)]
    for module in computed:
        parameters = list(module.parameters())
        _write_out_hooks(module)
        if is_parametrized(module):
            _write_out_parametrizations(module)
        editor.exchange_parameters(parameters, list(module.parameters()))
    for module in editor.model.modules():
        for key, hook in hooks_of(module, BasePruningMethod):
            _bake_mask(editor.optimizers, module, hook._tensor_name)
            del module._forward_pre_hooks[key]


def _write_out_hooks(module: nn.Module) -> None:
    for _, hook in hooks_of(module, COMPUTED):
        before = dict(module._parameters)
        (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, hook.name)
        sources = [tensor for leaf, tensor in before.items() if leaf not in module._parameters]
        module.get_parameter(hook.name).requires_grad_(_trained(sources))
        loading = module._load_state_dict_pre_hooks  # torch leaves a hook of spectral_norm here
        for key, other in list(loading.items()):
            if isinstance(getattr(other, "hook", other), SpectralNormLoadStateDictPreHook):
                del loading[key]


def _write_out_parametrizations(module: nn.Module) -> None:
    lists: Any = module.parametrizations
    with torch.no_grad(), evaluation_mode(module):  # in training mode spectral_norm updates its vectors
        values = {leaf: getattr(module, leaf).detach().clone() for leaf in lists}
    module.__class__ = type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for leaf, value in values.items():
        sources = list(lists[leaf].parameters())
        if sources:
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=_trained(sources)))
        else:
            module.register_buffer(leaf, value)


def _bake_mask(optimizers: list[Optimizer], module: nn.Module, leaf: str) -> None:
    mask = module._buffers.pop(f"{leaf}_mask")
    old = module._parameters.pop(f"{leaf}_orig")
    assert old is not None and mask is not None
    new = nn.Parameter(old.detach() * mask, requires_grad=old.requires_grad)
    vars(module).pop(leaf, None)
    module.register_parameter(leaf, new)
    rebind(optimizers, old, new, lambda moment: moment * mask)


def _trained(tensors: Iterable[Tensor | None]) -> bool:
    return any(tensor.requires_grad for tensor in tensors if tensor is not None)
