"""A transaction on a network and its optimizers.

Inside the ``with`` block of a :class:`Surgery`, each call replaces tensors by selected, merged or new ones and updates
every optimizer: new parameters take the old position in the same parameter group, optimizer state is transformed like
the parameter, and step counts are kept. No tensor is changed in place, so an exception inside the block restores the
network and the optimizers exactly.
"""

from copy import copy
from typing import Any

from torch import nn

from lightning_fold.surgery.editor import NetworkEditor
from lightning_fold.surgery.optimizers import check_optimizers, restore_state, saved_state

_HELD = ("_parameters", "_buffers", "_modules")


class Surgery(NetworkEditor):
    """Changes one network and its optimizers, either completely or not at all.

    Args:
        model: the network, changed in place.
        optimizers: every optimizer that trains it.

    Raises:
        ArgumentError: the state of an optimizer cannot be transformed, see :func:`check_optimizers`.
    """

    def __enter__(self) -> "Surgery":
        check_optimizers(self.optimizers)
        self._modules = [(module, type(module), dict(vars(module)), _tables(module)) for module in self.model.modules()]
        self._states = [saved_state(optimizer) for optimizer in self.optimizers]
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None:
            self._restore()

    def _restore(self) -> None:
        for module, kind, saved, tables in self._modules:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(saved)
            for key, entries in tables.items():  # keep the same tables, because hook handles refer to them
                saved[key].clear()
                saved[key].update(entries)
        for optimizer, state in zip(self.optimizers, self._states, strict=True):
            restore_state(optimizer, state)


def _tables(module: nn.Module) -> dict[str, Any]:
    """Copies of the tables in which a module holds its tensors, submodules and hooks."""
    found = {key: value for key, value in vars(module).items() if key in _HELD or "_hooks" in key}
    return {key: copy(value) for key, value in found.items() if isinstance(value, dict)}
