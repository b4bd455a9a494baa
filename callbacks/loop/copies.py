"""Finds copies of a network, such as averages of its weights, that would not follow a change of its shapes."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

from lightning_fold.callbacks.loop.run import CompressionRun
from lightning_fold.errors import ArgumentError

_TABLES = ("_parameters", "_buffers", "_modules")  # what a module has registered
_KNOWN = ("builtins", "lightning", "lightning_fold", "torch")  # objects of these packages are not searched
_DEPTH = 2  # nesting of attributes searched: finds ``module.ema.shadow``, but not the inside of a data set

Held = nn.Module | list[Tensor]


class Copies:
    """Detects copies of the network that would keep their shapes when the network's shapes change.

    A copy is anything whose tensors have, in order, the shapes of the network's trained parameters, but are other
    tensors that no optimizer trains. Mappings and lists of tensors are refused, because they are meant to be combined
    with the network's own parameters; so are networks kept by callbacks. A second network in the LightningModule may
    be a teacher, which is only called and may keep its shapes. It is refused once its values change.

    Args:
        call: name of the callback, for errors.
    """

    def __init__(self, call: str) -> None:
        self.call = call
        self._first: dict[str, Tensor] = {}  # the last tensor of each second network, as first seen
        self._warned = False

    def check(self, run: CompressionRun) -> None:
        """Refuse copies that cannot follow a change of shapes.

        Raises:
            ArgumentError: the message names the callback or the attribute and says what to do.
        """
        for callback in run.callbacks:
            if any(_copied(held, run) for _, held in _search(callback, "", run.pl_module)):
                raise self._refusal(f"{type(callback).__name__} keeps a second copy of the network, which")
        for name, held in _around(run):
            if not (copied := _copied(held, run)):
                continue
            if isinstance(held, AveragedModel):
                raise self._refusal(f"{name} is an AveragedModel, which")
            if not isinstance(held, nn.Module):
                raise self._refusal(f"{name} holds a copy of the network's parameters, which")
            last = copied[-1].detach()
            if not torch.equal(self._first.setdefault(name, last.clone()), last):
                raise self._refusal(f"{name} changes though no optimizer trains it: it is an average, which")

    def warn(self, run: CompressionRun) -> None:
        """Warn, before the first change of shapes, about objects that may not fit afterwards."""
        own = {id(parameter) for parameter in run.network.parameters()}
        for name, held in () if self._warned else _around(run):
            if isinstance(held, nn.Module) and _copied(held, run):
                rank_zero_warn(
                    f"{self.call}: {name} keeps its shapes while those of the network change. This is fine "
                    "for a teacher; an average of the network must be left out."
                )
            elif not isinstance(held, nn.Module) and any(id(tensor) in own for tensor in held):
                rank_zero_warn(
                    f"{self.call}: {name} holds parameters of the network, which are replaced when its shapes "
                    "change. Look them up where they are used."
                )
        self._warned = True

    def _refusal(self, what: str) -> ValueError:
        return ArgumentError(
            f"{self.call}: {what} would not follow the network's change of shape. Leave it out, or train with it first "
            "and compress the result afterwards."
        )


def _around(run: CompressionRun) -> Iterator[tuple[str, Held]]:
    """The other submodules, and the tensors and networks in attributes of all modules outside the network."""
    network, pl_module = run.network, run.pl_module
    inside = set(network.modules()) - {pl_module}
    for path, module in pl_module.named_modules():
        if module in inside:
            continue
        name = f"{type(pl_module).__name__}.{path}".removesuffix(".")
        yield from _search(module, name, pl_module)
        if network not in module.modules():
            yield name, module


def _search(
    owner: Any, name: str, pl_module: lightning.LightningModule, depth: int = _DEPTH
) -> Iterator[tuple[str, Held]]:
    """The networks, mappings and lists of tensors in unregistered attributes of ``owner``."""
    for key, value in vars(owner).items():
        if value is pl_module or (isinstance(owner, nn.Module) and key in _TABLES):
            continue
        path = f"{name}.{key}"
        parts = tree_leaves(value)  # of mappings and lists; anything else is one leaf
        yield path, [part for part in parts if isinstance(part, Tensor)]
        yield from ((path, part) for part in parts if isinstance(part, nn.Module) and part is not pl_module)
        if depth and hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _KNOWN:
            yield from _search(value, path, pl_module, depth - 1)


def _copied(held: Held, run: CompressionRun) -> list[Tensor]:
    """The tensors in ``held`` with the shapes of the network's parameters; empty if it is not a copy."""
    network = list(run.network.parameters())
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    trained = {id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad}
    others = trained | {id(parameter) for parameter in network}
    tensors = [*held.parameters(), *held.buffers()] if isinstance(held, nn.Module) else held
    candidates = [tensor for tensor in tensors if tensor.is_floating_point() and id(tensor) not in others]
    return _in_order(candidates, [parameter.shape for parameter in network if parameter.requires_grad])


def _in_order(tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """The first tensors with these ``shapes`` in order, perhaps with others in between; empty if one is missing."""
    found: list[Tensor] = []
    for tensor in tensors:
        if len(found) < len(shapes) and tensor.shape == shapes[len(found)]:
            found.append(tensor)
    return found if len(found) == len(shapes) else []
