"""WRITE: the only code that replaces a parameter, a buffer or a module of a network.

A :class:`Surgery` is a transaction. Inside its ``with`` block tensors are replaced by selected, merged or new ones and
every optimizer is rebound in the same call: new parameters stand at the old position of the same parameter group,
their moments are transformed like the parameter, step counts stay. No tensor is changed in place, so an exception
inside the block puts the network and the optimizers back exactly as they were.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import Optimizer

from lightning_fold.structure.graph.trace import evaluation_mode
from lightning_fold.surgery.optimizers import (
    Places,
    Transform,
    check_optimizers,
    copied,
    exchange,
    rebind,
    restore_state,
    saved_state,
    train_beside,
)
from lightning_fold.surgery.origins import as_built, created_in, keep_in_state_dict, remember_created, remember_replaced

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_HELD = ("_parameters", "_buffers", "_modules")
_COMPUTED = (WeightNorm, SpectralNorm)  # forward pre-hooks that compute a weight

# Which Python attributes of a module repeat the sizes of its tensors.
_SIZES: list[tuple[type[nn.Module], Callable[[Any], dict[str, Any]]]] = [
    (nn.Linear, lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}),
    (_ConvTransposeNd, lambda m: {"in_channels": m.weight.shape[0], "out_channels": m.weight.shape[1] * m.groups}),
    (_ConvNd, lambda m: {"out_channels": m.weight.shape[0], "in_channels": m.weight.shape[1] * m.groups}),
    (_NormBase, lambda m: {"num_features": _width(m)}),
    (nn.GroupNorm, lambda m: {"num_channels": m.weight.shape[0]} if m.weight is not None else {}),
    (nn.Embedding, lambda m: {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}),
    (nn.Bilinear, lambda m: dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True))),
    (nn.PReLU, lambda m: {"num_parameters": m.weight.shape[0]}),
]


class Surgery:
    """Changes to one network and its optimizers that happen together or not at all.

    Args:
        model: the network, changed in place.
        optimizers: every optimizer that trains it.

    Raises:
        ValueError: the state of an optimizer cannot follow, see :func:`check_optimizers`.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        self.model = model
        self.optimizers = list(optimizers)

    def __enter__(self) -> "Surgery":
        check_optimizers(self.optimizers)
        self._modules = [(module, type(module), dict(vars(module)), _tables(module)) for module in self.model.modules()]
        self._states = [saved_state(optimizer) for optimizer in self.optimizers]
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None:
            self._restore()

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer with this dotted name."""
        path, _, leaf = name.rpartition(".")
        return getattr(self.model.get_submodule(path), leaf)

    def transform(self, name: str, change: Transform, moments: Transform | None = None) -> None:
        """Replace the tensor ``name``, wherever it is tied, by ``change(tensor)``.

        Args:
            name: dotted name of a parameter or buffer.
            change: the new value of the tensor, as a function of the old one.
            moments: the same for optimizer state of the parameter's shape; ``change`` where not given.
        """
        old = self.tensor(name)
        with torch.no_grad():
            new = copied(change(old.detach()), like=old)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
            vars(new).update(vars(old))  # marks that the user's code has put on it
            rebind(self.optimizers, old, new, moments or change)
        for module, leaf in self._owners(old):
            if leaf in module._non_persistent_buffers_set:
                keep_in_state_dict(module, leaf)
            table = module._parameters if isinstance(new, nn.Parameter) else module._buffers
            table[leaf] = new  # pyright: ignore[reportArgumentType]
            refresh_sizes(module)

    def resize(self, name: str, shape: Sequence[int]) -> None:
        """Give the tensor ``name`` another shape, all zero; a buffer that no state dict holds is as it was built."""
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        built = as_built(module, leaf)
        if built is not None and list(built.shape) == list(shape):
            module.register_buffer(leaf, built.to(self.tensor(name)), persistent=False)
        else:
            self.transform(name, lambda tensor: tensor.new_zeros(tuple(shape)))

    def select(self, name: str, dim: int, keep: Tensor) -> None:
        """Keep the indices ``keep`` of one dimension of the tensor ``name``."""
        self.transform(name, lambda tensor: tensor.index_select(dim, keep.to(tensor.device)))

    def select_grouped(self, name: str, rows: Tensor, columns: Tensor, groups: int) -> None:
        """Keep output channels ``rows`` and input channels ``columns`` of a grouped convolution's weight.

        Every group left must keep equally many rows and equally many columns.
        """
        old = self.tensor(name)
        inner, outer = old.shape[1], old.shape[0] // groups
        blocks = rows.div(outer, rounding_mode="floor").unique()
        inside = columns.reshape(len(blocks), -1) - blocks[:, None] * inner
        by_row = inside.repeat_interleave(len(rows) // len(blocks), 0)
        self.transform(name, lambda weight: weight[rows[:, None].to(weight.device), by_row.to(weight.device)])
        for module, _ in self._owners(self.tensor(name)):
            _set_groups(module, groups, len(blocks))

    def set_attribute(self, path: str, name: str, value: float) -> None:
        """Set a Python attribute of the module ``path`` that counts channels or goes with their number."""
        setattr(self.model.get_submodule(path), name, value)

    def create(self, name: str, value: Tensor, beside: str) -> None:
        """Give a module the parameter ``name`` it does not have, trained beside the parameter ``beside``.

        As :func:`~lightning_fold.surgery.optimizers.train_beside` has it: with those of its kind, where there are some.
        """
        path, _, leaf = name.rpartition(".")
        module, neighbour = self.model.get_submodule(path), self.model.get_parameter(beside)
        created = nn.Parameter(value.detach().clone(), requires_grad=neighbour.requires_grad)
        siblings = [parameter for parameter in module.parameters(recurse=False) if parameter is not neighbour]
        setattr(module, leaf, created)
        remember_created(module, created_in(module) | {leaf})
        train_beside(self.optimizers, created, [neighbour, *siblings], self._places())

    def uncreate(self, name: str) -> None:
        """Take a parameter away again that :meth:`create` has given a module, from the optimizers too."""
        path, _, leaf = name.rpartition(".")
        module, old = self.model.get_submodule(path), self.model.get_parameter(name)
        module.register_parameter(leaf, None)
        remember_created(module, created_in(module) - {leaf})
        exchange(self.optimizers, [old], [], self._places())

    def replace_module(self, path: str, new: nn.Module) -> None:
        """Put ``new`` in the place of the submodule ``path``, under every name that it has in the network.

        Parameters that both hold go on with their state; the new ones are trained in the groups of those that go.
        Hooks on what it is called with and gives, and on their gradients, move to ``new``: it stands for the same.
        What stood there first is remembered without what a state dict holds (:func:`replaced_by`), for a way back.
        """
        old = self.model.get_submodule(path)
        _move_hooks(old, new)
        remember_replaced(old, new)
        for parent in list(self.model.modules()):
            parent._modules.update({leaf: new for leaf, child in parent._modules.items() if child is old})
        exchange(self.optimizers, list(old.parameters()), list(new.parameters()), self._places())

    def bake(self) -> None:
        """Write out, as plain weights for good, what masks, parametrizations and weight hooks compute.

        These are ``torch.nn.utils.prune``, ``torch.nn.utils.parametrize`` (weight_norm, spectral_norm, ...) and the
        older hooks of ``torch.nn.utils.weight_norm`` and ``spectral_norm``. Behind a mask the optimizers go on with
        their moments; what was computed otherwise starts without, in the group of what it was computed from.
        """
        computed = [module for module in self.model.modules() if is_parametrized(module) or _hooks(module, _COMPUTED)]
        for module in computed:
            parameters = list(module.parameters())
            self._write_out(module)
            exchange(self.optimizers, parameters, list(module.parameters()), self._places())
        for module in self.model.modules():
            for key, hook in _hooks(module, BasePruningMethod):
                self._bake_mask(module, hook._tensor_name)
                del module._forward_pre_hooks[key]

    def _write_out(self, module: nn.Module) -> None:
        for _, hook in _hooks(module, _COMPUTED):
            before = dict(module._parameters)
            (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, hook.name)
            sources = [tensor for leaf, tensor in before.items() if leaf not in module._parameters]
            module.get_parameter(hook.name).requires_grad_(_trained(sources))
            loading = module._load_state_dict_pre_hooks  # where torch leaves one of spectral_norm's
            for key, other in list(loading.items()):
                if isinstance(getattr(other, "hook", other), SpectralNormLoadStateDictPreHook):
                    del loading[key]
        if not is_parametrized(module):
            return
        lists: Any = module.parametrizations
        with torch.no_grad(), evaluation_mode(module):  # in training mode spectral_norm changes its vectors
            values = {leaf: getattr(module, leaf).detach().clone() for leaf in lists}
        module.__class__ = type_before_parametrizations(module)
        del module._modules["parametrizations"]
        for leaf, value in values.items():
            sources = list(lists[leaf].parameters())
            if sources:
                module.register_parameter(leaf, nn.Parameter(value, requires_grad=_trained(sources)))
            else:
                module.register_buffer(leaf, value)

    def _bake_mask(self, module: nn.Module, leaf: str) -> None:
        mask = module._buffers.pop(f"{leaf}_mask")
        old = module._parameters.pop(f"{leaf}_orig")
        assert old is not None and mask is not None
        new = nn.Parameter(old.detach() * mask, requires_grad=old.requires_grad)
        vars(module).pop(leaf, None)
        module.register_parameter(leaf, new)
        rebind(self.optimizers, old, new, lambda moment: moment * mask)

    def _places(self) -> Places:
        places: Places = {}
        for position, module in enumerate(self.model.modules()):
            for parameter in module.parameters(recurse=False):
                places.setdefault(parameter, position)
        return places

    def _owners(self, tensor: Tensor) -> list[tuple[nn.Module, str]]:
        return [
            (module, leaf)
            for module in self.model.modules()
            for table in (module._parameters, module._buffers)
            for leaf, value in table.items()
            if value is tensor
        ]

    def _restore(self) -> None:
        for module, kind, saved, tables in self._modules:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(saved)
            for key, entries in tables.items():  # the same tables: handles of hooks know them
                saved[key].clear()
                saved[key].update(entries)
        for optimizer, state in zip(self.optimizers, self._states, strict=True):
            restore_state(optimizer, state)


def _trained(tensors: Iterable[Tensor | None]) -> bool:
    return any(tensor.requires_grad for tensor in tensors if tensor is not None)


def _set_groups(module: nn.Module, old: int, new: int) -> None:
    """Set the number of groups of a convolution; what else owns such a weight may call that number as it likes."""
    if isinstance(module, _ConvNd):
        module.groups = new
        refresh_sizes(module)
        return
    for name, value in list(vars(module).items()):
        if type(value) is int and value == old:
            setattr(module, name, new)


def refresh_sizes(module: nn.Module) -> None:
    """Set the Python attributes of ``module`` that repeat the sizes of its tensors."""
    for kind, sizes in _SIZES:
        if isinstance(module, kind):
            for attribute, value in sizes(module).items():
                setattr(module, attribute, value)
            return
    weight: Any = getattr(module, "weight", None)
    if hasattr(module, "normalized_shape") and weight is not None:  # LayerNorm, RMSNorm and others like them
        vars(module)["normalized_shape"] = tuple(weight.shape)


def _width(norm: _NormBase) -> int:
    tensor = norm.weight if norm.weight is not None else norm.running_mean
    return norm.num_features if tensor is None else tensor.shape[0]


def _tables(module: nn.Module) -> dict[str, Any]:
    """Copies of what a module holds its tensors, its modules and its hooks in."""
    found = {key: value for key, value in vars(module).items() if key in _HELD or "_hooks" in key}
    return {key: copy(value) for key, value in found.items() if isinstance(value, dict)}


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Move the tables of hooks themselves, so that handles go on removing theirs; hooks that compute a weight end."""
    for key, _ in _hooks(old, (*_COMPUTED, BasePruningMethod)):
        del old._forward_pre_hooks[key]
    for name in _HOOKS:
        table = vars(old)[name]
        table.update(vars(new)[name])
        vars(new)[name], vars(old)[name] = table, type(table)()
    if new._backward_hooks:
        new._is_full_backward_hook = old._is_full_backward_hook


def _hooks(module: nn.Module, kinds: Any) -> list[tuple[int, Any]]:
    return [(key, hook) for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kinds)]
