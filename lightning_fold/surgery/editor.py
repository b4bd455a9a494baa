"""Editors read and replace the tensors of a network by dotted name."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.surgery.hooks import move_hooks
from lightning_fold.surgery.optimizers import Places, Transform, copied, exchange, rebind, train_beside
from lightning_fold.surgery.origins import as_built, created_in, keep_in_state_dict, remember_created, remember_replaced
from lightning_fold.surgery.sizes import refresh_sizes, set_groups


class Editor(ABC):
    """Reads and changes the values of a network.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer with this dotted name."""
        module, leaf = self._owner(name)
        return getattr(module, leaf)

    @abstractmethod
    def transform(self, name: str, change: Transform, moments: Transform | None = None) -> None:
        """Replace the tensor ``name``, wherever it is tied, by ``change(tensor)``.

        Args:
            name: dotted name of a parameter or buffer.
            change: the new value of the tensor, as a function of the old one.
            moments: the same for optimizer state tensors of the parameter's shape; ``change`` if not given.
        """

    def set(self, name: str, value: Tensor) -> None:
        """Replace the tensor ``name`` by ``value``, of the same shape; optimizer state does not change."""
        self.transform(name, lambda _: value.detach(), moments=lambda moment: moment)

    def add(self, name: str, value: Tensor) -> None:
        """Add ``value`` to the tensor ``name``; optimizer state does not change."""
        old = self.tensor(name).detach()
        self.set(name, old + value.to(old))

    def scale(self, name: str, dim: int, factors: Tensor) -> None:
        """Multiply the tensor ``name`` by ``factors`` (size of ``dim``,); optimizer state does not change."""
        old = self.tensor(name).detach()
        self.set(name, old * factors.to(old).reshape([-1 if d == dim else 1 for d in range(old.dim())]))

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds the tensor ``name``, and the tensor's name in that module."""
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf


class NetworkEditor(Editor):
    """Changes a network in place: values, shapes and modules, and the optimizers that train it.

    Tensors themselves are never changed in place: new ones replace old ones, in the network and in the optimizers.
    Use it alone only on copies that can be discarded after an error; use
    :class:`~lightning_fold.surgery.transaction.Surgery` for a network that must survive errors.

    Args:
        model: the network.
        optimizers: every optimizer that trains it.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        super().__init__(model)
        self.optimizers = list(optimizers)

    def transform(self, name: str, change: Transform, moments: Transform | None = None) -> None:
        """Replace the tensor ``name``, wherever it is tied, and update attributes that repeat its sizes."""
        old = self.tensor(name)
        with torch.no_grad():
            new = copied(change(old.detach()), like=old)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
            vars(new).update(vars(old))  # attributes that user code has set on it
            rebind(self.optimizers, old, new, moments or change)
        for module, leaf in self._owners(old):
            if leaf in module._non_persistent_buffers_set:
                keep_in_state_dict(module, leaf)
            table = module._parameters if isinstance(new, nn.Parameter) else module._buffers
            table[leaf] = new  # pyright: ignore[reportArgumentType]
            refresh_sizes(module)

    def resize(self, name: str, shape: Sequence[int]) -> None:
        """Give the tensor ``name`` another shape, all zeros; restore a buffer if its class builds it in that shape."""
        module, leaf = self._owner(name)
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

        Every remaining group must keep the same number of rows and the same number of columns.
        """
        old = self.tensor(name)
        inner, outer = old.shape[1], old.shape[0] // groups
        blocks = rows.div(outer, rounding_mode="floor").unique()
        inside = columns.reshape(len(blocks), -1) - blocks[:, None] * inner
        by_row = inside.repeat_interleave(len(rows) // len(blocks), 0)
        self.transform(name, lambda weight: weight[rows[:, None].to(weight.device), by_row.to(weight.device)])
        for module, _ in self._owners(self.tensor(name)):
            set_groups(module, groups, len(blocks))

    def set_attribute(self, path: str, name: str, value: float) -> None:
        """Set a Python attribute of the module ``path`` that counts channels or depends on their number."""
        setattr(self.model.get_submodule(path), name, value)

    def create(self, name: str, value: Tensor, beside: str) -> None:
        """Create the missing parameter ``name`` of a module, and train it with the parameter ``beside``.

        :func:`~lightning_fold.surgery.optimizers.train_beside` chooses the parameter group.
        """
        module, leaf = self._owner(name)
        neighbour = self.model.get_parameter(beside)
        created = nn.Parameter(value.detach().clone(), requires_grad=neighbour.requires_grad)
        siblings = [parameter for parameter in module.parameters(recurse=False) if parameter is not neighbour]
        setattr(module, leaf, created)
        remember_created(module, created_in(module) | {leaf})
        train_beside(self.optimizers, created, [neighbour, *siblings], self._places())

    def uncreate(self, name: str) -> None:
        """Remove a parameter that :meth:`create` gave a module, from the module and the optimizers."""
        module, leaf = self._owner(name)
        old = self.model.get_parameter(name)
        module.register_parameter(leaf, None)
        remember_created(module, created_in(module) - {leaf})
        self.exchange_parameters([old], [])

    def replace_module(self, path: str, new: nn.Module) -> None:
        """Replace the submodule ``path`` by ``new``, under every name that it has in the network.

        Parameters that both hold keep their optimizer state; new ones join the parameter groups of the removed ones.
        Forward and backward hooks move to ``new``, because it represents the same layer. The original module is
        remembered without the tensors of its state dict (:func:`replaced_by`), so that the change can be undone.
        """
        old = self.model.get_submodule(path)
        move_hooks(old, new)
        remember_replaced(old, new)
        for parent in list(self.model.modules()):
            parent._modules.update({leaf: new for leaf, child in parent._modules.items() if child is old})
        self.exchange_parameters(list(old.parameters()), list(new.parameters()))

    def exchange_parameters(self, old: list[nn.Parameter], new: list[nn.Parameter]) -> None:
        """Let the optimizers train ``new`` instead of ``old``; the network must already hold the new parameters."""
        exchange(self.optimizers, old, new, self._places())

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
