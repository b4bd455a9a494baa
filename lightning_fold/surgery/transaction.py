"""A transaction on a network and its optimizers.

Inside the ``with`` block of a :class:`Surgery` tensors are replaced by selected, merged or new ones and every optimizer
is rebound in the same call: new parameters stand at the old position of the same parameter group, their moments are
transformed like the parameter, step counts stay. No tensor is changed in place, so an exception inside the block puts
the network and the optimizers back exactly as they were.
"""

from copy import copy
from typing import Any

from torch import nn

from lightning_fold.surgery.editor import NetworkEditor
from lightning_fold.surgery.optimizers import check_optimizers, restore_state, saved_state

_HELD = ("_parameters", "_buffers", "_modules")


class Surgery(NetworkEditor):
    """Changes to one network and its optimizers that happen together or not at all.

    Args:
        model: the network, changed in place.
        optimizers: every optimizer that trains it.

    Raises:
        ValueError: the state of an optimizer cannot follow, see :func:`check_optimizers`.
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
            for key, entries in tables.items():  # the same tables: handles of hooks know them
                saved[key].clear()
                saved[key].update(entries)
        for optimizer, state in zip(self.optimizers, self._states, strict=True):
            restore_state(optimizer, state)


def _tables(module: nn.Module) -> dict[str, Any]:
    """Copies of what a module holds its tensors, its modules and its hooks in."""
    found = {key: value for key, value in vars(module).items() if key in _HELD or "_hooks" in key}
    return {key: copy(value) for key, value in found.items() if isinstance(value, dict)}
