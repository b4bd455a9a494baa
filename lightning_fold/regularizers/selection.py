"""The layers of a network that patterns select, and their weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from lightning_fold.surgery.origins import replaced_by

LAYERS = (nn.Linear, _ConvNd)


@dataclass(frozen=True)
class LayerWeight:
    """The weight of a layer and, if there is one, its mask from ``torch.nn.utils.prune``."""

    name: str
    parameter: nn.Parameter
    mask: Tensor | None

    def is_real(self) -> bool:
        """Whether it holds real numbers; uninitialized weights of lazy modules are assumed to."""
        return self.parameter.dtype.is_floating_point and (is_lazy(self.parameter) or self.parameter.numel() > 0)

    def masked(self) -> Tensor:
        """The weight that the layer uses: with its mask, if there is one."""
        return self.parameter if self.mask is None else self.parameter * self.mask


def labelled_modules(
    network: nn.Module, prefix: str = "", *, replaced: bool = False
) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Yield each module with its dotted name (without ``torch.compile``'s prefix) and the labels that patterns match.

    The labels are the name and type of the module, and of the original layers that rewrites replaced by it or by a
    module around it. So a rewritten layer is selected like the original. With ``replaced``, the replaced modules are
    yielded too.
    """
    inherited: dict[str, list[str]] = {}
    for path, module in network.named_modules(prefix=prefix):
        name = ".".join(part for part in path.split(".") if part != "_orig_mod")
        before = replaced_by(module)
        earlier = [name, type(before).__name__] if isinstance(before, LAYERS) else []
        inherited[path] = inherited.get(path.rpartition(".")[0], []) + earlier
        yield name, module, [name, type_before_parametrizations(module).__name__, *inherited[path]]
        if replaced and before is not None:
            yield from labelled_modules(before, path, replaced=True)


def matches(patterns: list[str], labels: list[str]) -> bool:
    """Whether one of ``patterns`` matches one of ``labels``."""
    return any(fnmatchcase(label, pattern) for pattern in patterns for label in labels)


def weight_of(module: nn.Module, name: str) -> LayerWeight | None:
    """The weight of the layer ``name``; ``None`` if the layer computes it in another way than by a mask."""
    plain, hidden = (module._parameters.get(leaf) for leaf in ("weight", "weight_orig"))
    mask = module._buffers.get("weight_mask")
    if plain is not None:
        return LayerWeight(f"{name}.weight".removeprefix("."), plain, None)
    if hidden is not None and mask is not None:
        return LayerWeight(f"{name}.weight_orig".removeprefix("."), hidden, mask)
    return None


def is_matrix(module: nn.Module) -> bool:
    """Whether a layer multiplies by one matrix: a linear layer, or an ungrouped, non-transposed convolution."""
    if isinstance(module, _ConvNd):
        return module.groups == 1 and not module.transposed
    return isinstance(module, nn.Linear)
