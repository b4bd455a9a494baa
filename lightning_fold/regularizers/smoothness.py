"""Smoothness: penalties on the layers of a network, added to its gradients during training."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_fold.arguments import as_list
from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.regularizers.penalties import BUILT_IN, Penalty, find_penalty, path_of, tags, takes, with_arguments
from lightning_fold.regularizers.penalty import WeightAxis, dimensions
from lightning_fold.regularizers.selection import LAYERS, LayerWeight, is_matrix, labelled_modules, matches, weight_of
from lightning_fold.regularizers.spectrum import spectrum_decay
from lightning_fold.structure.graph.trace import unwrapped

# A strength, or a mapping of a strength and the penalty's own arguments.
Strength = float | dict[str, Any]


class Smoothness:
    """Penalties that make the weights of linear layers and ungrouped convolutions easier to compress.

    Each penalty adds strength * (sum over layers) to the training objective. A difference is multiplied by the number
    of weights of its layer, so its strength is comparable to weight decay; the nuclear norm and group sparsity are
    plain sums.

    Args:
        penalties: strength, at least 0, of "nuclear_norm", "first_difference", "second_difference" (along axes, after
            "Smooth Model Compression without Fine-Tuning", arXiv 2505.24469), "group_sparsity" (L2,1 over axes), or of
            your own penalty: the dotted path of a function or class or, in Python, the object itself. Instead of a
            strength, a mapping can also give arguments: {"my_package.SpectralNorm": {"strength": 0.01, "power": 3}}.
        axes: "output" (channels), "input" (channels), "space" (of a kernel): the axes of differences and groups.
        squared: whether to use squared differences; if not, absolute ones.
        every: optimizer steps from one application to the next, at least 1; each application is scaled by this number.
        start_epoch: first epoch with penalties, at least 0.
        warmup_epochs: epochs, at least 0, over which the strength grows in equal steps to its full value.
        layers: patterns, as in file names ("*.conv?", "Linear"); a layer's dotted name or type must match one of them.
            ``torch.compile`` changes no names; a rewritten layer also matches by its original name and type.
        skip: patterns of layers to leave out.

    Raises:
        ArgumentError: a value is out of range, or a penalty cannot be imported or has no such argument.
        ArgumentTypeError: a strength is not a number, or a penalty is not a name, function or class.
    """

    def __init__(
        self,
        penalties: Mapping[Any, Strength] = {"nuclear_norm": 1e-3},
        axes: list[WeightAxis] = ["output", "input"],  # noqa: B006  read only
        squared: bool = True,
        every: int = 4,
        start_epoch: int = 0,
        warmup_epochs: int = 0,
        layers: list[str] = ["*"],  # noqa: B006  read only
        skip: list[str] = [],  # noqa: B006  read only
    ) -> None:
        call = type(self).__name__
        self.penalties, self._given = _by_path(call, penalties)
        self.axes, self.squared = as_list(call, "axes", axes), squared
        self.every, self.start_epoch, self.warmup_epochs = every, start_epoch, warmup_epochs
        self.layers, self.skip = as_list(call, "layers", layers), as_list(call, "skip", skip)
        self._check()
        self._objects = {name: self._made(name) for name in self.penalties if isinstance(self._found(name), type)}

    def weights(self, network: nn.Module, *, frozen: bool = False) -> dict[str, nn.Parameter]:
        """The trainable weights that are penalised, by dotted name; with ``frozen``, also the selected frozen weights.

        Tied weights count once; empty and complex ones do not count. For a layer with a mask from
        ``torch.nn.utils.prune`` this is ``weight_orig``; the penalty applies to its product with the mask.
        """
        return {each.name: each.parameter for each in self._weights(network, frozen=frozen)}

    def spectrum_decay(self, network: nn.Module) -> float:
        """:func:`spectrum_decay` of the weights that are penalised."""
        return spectrum_decay({each.name: each.masked() for each in self._weights(network)})

    def computed(self, network: nn.Module) -> list[str]:
        """The dotted names of layers that are selected but not penalised, because they compute their weight."""
        return [name for name, module in self._selected(network) if weight_of(module, name) is None]

    def check_patterns(self, network: nn.Module) -> None:
        """Refuse patterns that match no layer of ``network``, now or before rewrites.

        Raises:
            ArgumentError: ``layers`` or ``skip`` has such a pattern.
        """
        known = [
            (name, labels)
            for name, module, labels in labelled_modules(network, replaced=True)
            if isinstance(module, LAYERS)
        ]
        for argument in ("layers", "skip"):
            for pattern in getattr(self, argument):
                if not any(matches([pattern], labels) for _, labels in known):
                    names = ", ".join(dict.fromkeys(name for name, _ in known[:3]))
                    raise ArgumentError(
                        f"{type(self).__name__}({argument}=[{pattern!r}]): matches no linear layer or convolution of "
                        f"{type(unwrapped(network)).__name__}; expected a pattern of dotted names such as {names}, "
                        "or of types such as Linear."
                    )

    def strength(self, epoch: int) -> float:
        """Share of the full strength in ``epoch``, counted from 0."""
        return min(max((epoch - self.start_epoch + 1) / (self.warmup_epochs + 1), 0.0), 1.0)

    def add_gradients(
        self, network: nn.Module, *, step: int, epoch: int, trained: Iterable[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Add the penalties' gradients to ``.grad`` of the weights, if this step is due.

        Args:
            network: the current network; its layers are looked up at each call.
            step: optimizer steps done before this one.
            epoch: the epoch, counted from 0.
            trained: the parameters that the step changes; all by default.

        Returns:
            The value of each penalty without its strength; empty if nothing was added.
        """
        scale = self.every * self.strength(epoch)
        if step % self.every or scale == 0:
            return {}
        chosen = None if trained is None else set(trained)
        weights = [each for each in self._weights(network) if chosen is None or each.parameter in chosen]
        called = tags(self.penalties)
        return {
            called[name]: self._add(name, scale * self._strength(name), weights) for name in self._active if weights
        }

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        names = ("penalties", "axes", "squared", "every", "start_epoch", "warmup_epochs", "layers", "skip")
        return {name: getattr(self, name) for name in names}

    def _selected(self, network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, module, labels in labelled_modules(network):
            if is_matrix(module) and matches(self.layers, labels) and not matches(self.skip, labels):
                yield name, module

    def _weights(self, network: nn.Module, *, frozen: bool = False) -> list[LayerWeight]:
        found: dict[nn.Parameter, LayerWeight] = {}
        for name, module in self._selected(network):
            weight = weight_of(module, name)
            if weight is not None and weight.is_real() and (weight.parameter.requires_grad or frozen):
                found.setdefault(weight.parameter, weight)
        return list(found.values())

    def _add(self, name: str, scale: float, weights: list[LayerWeight]) -> Tensor:
        values, penalty = [], self._objects[name] if name in self._objects else self._made(name)
        for weight in weights:
            parameter = weight.parameter
            with torch.enable_grad():
                value = penalty(weight.masked())
            gradient = self._gradient(name, value, parameter)
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad.add_(gradient, alpha=scale)
            values.append(value.detach())
        return torch.stack([value.to(values[0].device) for value in values]).sum()

    def _gradient(self, name: str, value: Any, parameter: Tensor) -> Tensor:
        """The gradient of the penalty ``name``; zero where its value is a constant."""
        if not isinstance(value, Tensor) or value.dim():
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ArgumentTypeError(
                f"{type(self).__name__}(penalties={{{name!r}: ...}}): gives {found} for a weight of shape "
                f"{tuple(parameter.shape)}; expected a tensor with one number, of shape ()."
            )
        if not value.requires_grad:
            return torch.zeros_like(parameter)
        return torch.autograd.grad(value, parameter, materialize_grads=True)[0]

    def _found(self, name: str) -> Callable[..., Any]:
        return self._given[name] if name in self._given else find_penalty(type(self).__name__, name)

    def _made(self, name: str) -> Penalty:
        shared = {"axes": self.axes, "squared": self.squared}
        return with_arguments(type(self).__name__, name, self._found(name), self._own_arguments(name), shared)

    def _strength(self, name: str) -> Any:
        entry = self.penalties[name]
        return entry.get("strength") if isinstance(entry, dict) else entry

    def _own_arguments(self, name: str) -> dict[str, Any]:
        entry = self.penalties[name]
        return {key: value for key, value in entry.items() if key != "strength"} if isinstance(entry, dict) else {}

    @property
    def _active(self) -> list[str]:
        return [name for name in self.penalties if self._strength(name) > 0]

    def _check(self) -> None:
        call = type(self).__name__
        strengths = [self._strength(name) for name in self.penalties]
        if any(isinstance(strength, bool) or not isinstance(strength, Real) for strength in strengths):
            raise ArgumentTypeError(
                f"{call}(penalties={self.penalties}): expected a number for each penalty, or a mapping with the number "
                "under 'strength' and the penalty's arguments."
            )
        if not strengths or not all(0 <= strength < math.inf for strength in strengths):
            raise ArgumentError(
                f"{call}(penalties={self.penalties}): expected finite strengths of at least 0 for names among "
                f"{', '.join(BUILT_IN)}, or for dotted paths of functions or classes; for example "
                "{'nuclear_norm': 1e-3}."
            )
        for name, lowest in (("every", 1), ("start_epoch", 0), ("warmup_epochs", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < lowest:
                raise ArgumentError(f"{call}({name}={value}): expected a whole number of at least {lowest}.")
        dimensions(torch.zeros(1, 1), self.axes)
        along = [name for name in self._active if takes(self._found(name), "axes")]
        if not self.axes and (along := [name for name in along if "axes" not in self._own_arguments(name)]):
            raise ArgumentError(
                f"{call}(axes=[]): expected one or more of {', '.join(get_args(WeightAxis))} for {along[0]}."
            )
        for name in self.penalties:
            if not isinstance(self._found(name), type):
                self._made(name)


def _by_path(call: str, penalties: Any) -> tuple[dict[str, Strength], dict[str, Callable[..., Any]]]:
    """The settings of penalties by name, and the penalties that were given as functions or classes."""
    if not isinstance(penalties, Mapping):
        raise ArgumentTypeError(
            f"{call}(penalties={penalties!r}): expected strengths by name, for example {{'nuclear_norm': 1e-3}}."
        )
    named = {
        path_of(call, key): dict(entry) if isinstance(entry, Mapping) else entry for key, entry in penalties.items()
    }
    given = {path_of(call, key): key for key in penalties if not isinstance(key, str)}
    return named, {name: penalty for name, penalty in given.items() if name not in BUILT_IN}
