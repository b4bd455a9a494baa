"""Smoothness: penalties on the layers of a network, added to its gradients while it trains."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from lightning_fold.arguments import as_list
from lightning_fold.errors import ArgumentError
from lightning_fold.regularizers.differences import first_difference, second_difference
from lightning_fold.regularizers.group_sparsity import group_sparsity
from lightning_fold.regularizers.nuclear import nuclear_norm
from lightning_fold.regularizers.penalty import WeightAxis, dimensions
from lightning_fold.structure.graph.trace import unwrapped
from lightning_fold.surgery.origins import replaced_by

Penalty = Literal["nuclear_norm", "first_difference", "second_difference", "group_sparsity"]

_LAYERS = (nn.Linear, _ConvNd)


class Smoothness:
    """Penalties that make the weights of linear layers and ungrouped convolutions easier to compress.

    The training objective gains strength * sum over layers. A difference counts once for every weight of its
    layer, so its strength compares with a weight decay; the nuclear norm and group sparsity are the sums that they are.

    Args:
        penalties: strength, at least 0, of "nuclear_norm", "first_difference", "second_difference" (along axes, after
            "Smooth Model Compression without Fine-Tuning", arXiv 2505.24469) or "group_sparsity" (L2,1 over axes).
        axes: "output" (channels), "input" (channels), "space" (of a kernel): where differences and groups are taken.
        squared: squared differences, or else absolute ones.
        every: optimizer steps from one application to the next, at least 1; each is as strong as all of them together.
        start_epoch: first epoch with penalties, at least 0.
        warmup_epochs: epochs, at least 0, over which the strength grows in equal steps until it is full.
        layers: patterns, as in file names, one of which a layer's dotted name or type must match ("*.conv?",
            "Linear"). ``torch.compile`` changes no names; what a rewrite makes of a layer has its name and type, too.
        skip: patterns of layers that are left out.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        penalties: dict[Penalty, float] = {"nuclear_norm": 1e-3},  # noqa: B006  read only
        axes: list[WeightAxis] = ["output", "input"],  # noqa: B006  read only
        squared: bool = True,
        every: int = 4,
        start_epoch: int = 0,
        warmup_epochs: int = 0,
        layers: list[str] = ["*"],  # noqa: B006  read only
        skip: list[str] = [],  # noqa: B006  read only
    ) -> None:
        call = type(self).__name__
        self.penalties, self.axes, self.squared = dict(penalties), as_list(call, "axes", axes), squared
        self.every, self.start_epoch, self.warmup_epochs = every, start_epoch, warmup_epochs
        self.layers, self.skip = as_list(call, "layers", layers), as_list(call, "skip", skip)
        self._check()

    def weights(self, network: nn.Module, *, frozen: bool = False) -> dict[str, nn.Parameter]:
        """The trained weights that are penalised, or also those that may be once they train, by dotted name.

        Tied weights count once; empty and complex ones do not. Behind a mask of ``torch.nn.utils.prune`` the weight is
        ``weight_orig``; what is penalised is its product with the mask.
        """
        return {each.name: each.parameter for each in self._weights(network, frozen=frozen)}

    def spectrum_decay(self, network: nn.Module) -> float:
        """:func:`spectrum_decay` of the weights that are penalised."""
        return spectrum_decay({each.name: each.masked() for each in self._weights(network)})

    def computed(self, network: nn.Module) -> list[str]:
        """The layers, by dotted name, that are selected but not penalised, as they compute their weight from others."""
        return [name for name, module in self._selected(network) if _weight_of(module, name) is None]

    def check_patterns(self, network: nn.Module) -> None:
        """Refuse patterns that match no layer of ``network``, neither as it is nor as it was before rewrites.

        Raises:
            ValueError: there is such a pattern in ``layers`` or ``skip``.
        """
        known = [
            (name, labels)
            for name, module, labels in _labelled_modules(network, replaced=True)
            if isinstance(module, _LAYERS)
        ]
        for argument in ("layers", "skip"):
            for pattern in getattr(self, argument):
                if not any(_matches([pattern], labels) for _, labels in known):
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
        """Add the penalties' gradients to ``.grad`` of the weights, if this step is one of those that do.

        Args:
            network: the network as it is now: its layers are looked up anew each time.
            step: optimizer steps done before this one.
            epoch: the epoch, counted from 0.
            trained: parameters that the step changes; all where not given.

        Returns:
            The value of each penalty without its strength; empty where nothing was added.
        """
        scale = self.every * self.strength(epoch)
        if step % self.every or scale == 0:
            return {}
        chosen = None if trained is None else set(trained)
        weights = [each for each in self._weights(network) if chosen is None or each.parameter in chosen]
        return {name: self._add(name, scale * self.penalties[name], weights) for name in self._active if weights}

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        names = ("penalties", "axes", "squared", "every", "start_epoch", "warmup_epochs", "layers", "skip")
        return {name: getattr(self, name) for name in names}

    def _selected(self, network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for name, module, labels in _labelled_modules(network):
            if _is_matrix(module) and _matches(self.layers, labels) and not _matches(self.skip, labels):
                yield name, module

    def _weights(self, network: nn.Module, *, frozen: bool = False) -> list["_Weight"]:
        found: dict[nn.Parameter, _Weight] = {}
        for name, module in self._selected(network):
            weight = _weight_of(module, name)
            if weight is not None and weight.is_real() and (weight.parameter.requires_grad or frozen):
                found.setdefault(weight.parameter, weight)
        return list(found.values())

    def _add(self, name: Penalty, scale: float, weights: list["_Weight"]) -> Tensor:
        values = []
        for weight in weights:
            parameter = weight.parameter
            with torch.enable_grad():
                value = self._value(name, weight.masked())
            (gradient,) = torch.autograd.grad(value, parameter)
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad.add_(gradient, alpha=scale)
            values.append(value.detach())
        return torch.stack([value.to(values[0].device) for value in values]).sum()

    def _value(self, name: Penalty, weight: Tensor) -> Tensor:
        if name == "nuclear_norm":
            return nuclear_norm(weight)
        if name == "group_sparsity":
            return group_sparsity(weight, self.axes)
        difference = first_difference if name == "first_difference" else second_difference
        return weight.numel() * difference(weight, self.axes, squared=self.squared)

    @property
    def _active(self) -> list[Penalty]:
        return [name for name, strength in self.penalties.items() if strength > 0]

    def _check(self) -> None:
        call = type(self).__name__
        known = get_args(Penalty)
        strengths = self.penalties.values()
        if not strengths or set(self.penalties) - set(known) or not all(0 <= s < math.inf for s in strengths):
            raise ArgumentError(
                f"{call}(penalties={self.penalties}): expected finite strengths of at least 0 for names among "
                f"{', '.join(known)}, for example {{'nuclear_norm': 1e-3}}."
            )
        for name, lowest in (("every", 1), ("start_epoch", 0), ("warmup_epochs", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < lowest:
                raise ArgumentError(f"{call}({name}={value}): expected a whole number of at least {lowest}.")
        dimensions(torch.zeros(1, 1), self.axes)
        if not self.axes and (along := [name for name in self._active if name != "nuclear_norm"]):
            raise ArgumentError(
                f"{call}(axes=[]): expected one or more of {', '.join(get_args(WeightAxis))} for {along[0]}."
            )


@dataclass(frozen=True)
class _Weight:
    """The weight of a layer, and the mask of ``torch.nn.utils.prune`` that it is multiplied with, if there is one."""

    name: str
    parameter: nn.Parameter
    mask: Tensor | None

    def is_real(self) -> bool:
        """Whether it holds real numbers, as those are taken to that a lazy module has yet to make."""
        return self.parameter.dtype.is_floating_point and (is_lazy(self.parameter) or self.parameter.numel() > 0)

    def masked(self) -> Tensor:
        """What the layer computes with."""
        return self.parameter if self.mask is None else self.parameter * self.mask


def spectrum_decay(weights: Mapping[str, Tensor]) -> float:
    """Share of the energy in the largest quarter of the singular values, averaged over ``weights``; in [0, 1].

    The energy is the sum of squares, a weight (O, I, ...) the matrix O x (I ...) with n singular values, of which the
    largest ceil(n / 4) are a quarter. Where all are equal it is ceil(n / 4) / n; a matrix of that rank, or less, has 1.
    NaN without weights, and where the energy of one is not finite.
    """
    shares = []
    for weight in weights.values():
        matrix = weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
        gram = matrix @ matrix.mT
        if not bool(gram.isfinite().all()):  # which has no eigenvalues
            return float("nan")
        energies = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
        total = energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
        shares.append(energies[: -(-len(energies) // 4)].sum() / total)
    return float(torch.stack(shares).mean()) if shares else float("nan")


def _labelled_modules(
    network: nn.Module, prefix: str = "", *, replaced: bool = False
) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """The modules by dotted name, as without ``torch.compile``, and what patterns may match.

    This is name and type, of the module and of the layers that stood first in its place or around it, so that what a
    rewrite has made of a layer is selected as that one was. On demand the modules that were replaced come, too.
    """
    inherited: dict[str, list[str]] = {}
    for path, module in network.named_modules(prefix=prefix):
        name = ".".join(part for part in path.split(".") if part != "_orig_mod")
        before = replaced_by(module)
        earlier = [name, type(before).__name__] if isinstance(before, _LAYERS) else []
        inherited[path] = inherited.get(path.rpartition(".")[0], []) + earlier
        yield name, module, [name, type_before_parametrizations(module).__name__, *inherited[path]]
        if replaced and before is not None:
            yield from _labelled_modules(before, path, replaced=True)


def _matches(patterns: list[str], labels: list[str]) -> bool:
    return any(fnmatchcase(label, pattern) for pattern in patterns for label in labels)


def _weight_of(module: nn.Module, name: str) -> _Weight | None:
    """The weight of the layer ``name``; ``None`` where it computes it, other than by a mask."""
    plain, hidden = (module._parameters.get(leaf) for leaf in ("weight", "weight_orig"))
    mask = module._buffers.get("weight_mask")
    if plain is not None:
        return _Weight(f"{name}.weight".removeprefix("."), plain, None)
    if hidden is not None and mask is not None:
        return _Weight(f"{name}.weight_orig".removeprefix("."), hidden, mask)
    return None


def _is_matrix(module: nn.Module) -> bool:
    if isinstance(module, _ConvNd):
        return module.groups == 1 and not module.transposed
    return isinstance(module, nn.Linear)
