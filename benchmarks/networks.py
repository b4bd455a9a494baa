"""Networks of timm and torchvision with zeros in their weights, and what is asked of them after minimize."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from lightning_fold.complexity import count_parameters
from lightning_fold.rewrites.exact.round_widths import parameters_left
from lightning_fold.structure.groups import read_structure
from lightning_fold.structure.liveness import live_groups

FEW = 4
# Shares of zeros, the first with which the output still depends on the input.
SHARES = {"rows": (0.5, 0.3, 0.1), "columns": (0.5, 0.3, 0.1), "scattered": (0.97, 0.9, 0.7, 0.4, 0.2)}
PATTERNS = tuple(SHARES)

# Timm networks, or torchvision/<name>, then the size of the images; the widths are the real ones.
NETWORKS = Path(__file__).with_name("networks.txt").read_text().split()


@dataclass(frozen=True)
class Case:
    """A network with zeros, ready to be minimized, and images of its size."""

    model: nn.Module
    size: int
    share: float

    def images(self, count: int, *, seed: int = 1, size: int | None = None) -> Tensor:
        """Random images in the type of the network."""
        side, dtype = size or self.size, next(self.model.parameters()).dtype
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64).to(dtype)


def build(
    network: str, pattern: str, *, dtype: torch.dtype = torch.float64, shares: tuple[float, ...] | None = None
) -> Case:
    """The network ``name:size`` in evaluation mode, with as many zeros as leave its output dependent on its input."""
    name, _, size = network.partition(":")
    for share in shares or SHARES[pattern]:
        case = Case(_create(name, int(size), dtype).eval(), int(size), share)
        _mask(case.model, pattern, share)
        estimate_statistics(case.model, case.images(8, seed=2))
        found = outputs(case.model, case.images(4))
        if all(_spread(value) > 1e-4 * float(value.abs().max()) for value in found):
            return case
    raise ValueError(f"build({network!r}, {pattern!r}): no share of zeros leaves an output that depends on the input.")


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Every tensor that the network returns."""
    with torch.no_grad():
        return [value for value in tree_leaves(model(images)) if isinstance(value, Tensor)]


def error_of(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    """The largest difference of an output element, relative to the spread of the outputs over the images."""
    pairs = zip(outputs(model, images), outputs(dense, images), strict=True)
    return max(float((left - right).abs().max()) / _spread(right) for left, right in pairs)


def reachable_factor(model: nn.Module, example_inputs: Tensor) -> float:
    """The factor if every channel went that a layer writes and that is dead or constant by the analysis."""
    structure = read_structure(model, example_inputs)
    written = [structure.group_of[c.rows] for c in structure.labels.contractions if c.rows is not None]
    dead = torch.zeros(structure.count, dtype=torch.bool)
    dead[torch.cat(written)] = True
    dead &= ~live_groups(structure)
    return count_parameters(model) / parameters_left(structure, dead)


def runs_at(model: nn.Module, images: Tensor) -> bool:
    """Whether the network takes images of this size."""
    try:
        outputs(model, images)
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def training_step(model: nn.Module, images: Tensor) -> bool:
    """One step of SGD on a copy of the network in training mode: whether every layer's gradient is finite."""
    model = deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = [value for value in tree_leaves(model(images)) if isinstance(value, Tensor)]
    torch.stack([value.square().mean() for value in found]).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    optimizer.step()
    return bool(gradients) and all(bool(gradient.isfinite().all()) for gradient in gradients)


def estimate_statistics(model: nn.Module, images: Tensor) -> None:
    """Estimate BatchNorm statistics: with those from before masking, outputs hardly depend on the input."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    outputs(model, images) if norms else None
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def _create(name: str, size: int, dtype: torch.dtype) -> nn.Module:
    """Random weights; LayerScale, biases and weights that start at zero are drawn anew."""
    torch.manual_seed(0)
    if name.startswith("torchvision/"):
        model = _torchvision(name.removeprefix("torchvision/"), size)
    else:
        model = _timm(name, size)
    for key, parameter in model.named_parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif parameter.dim() == 1 and float(parameter.detach().abs().max()) < 1e-3:
            nn.init.normal_(parameter, std=0.5) if key.endswith("bias") else nn.init.uniform_(parameter, 0.3, 1.0)
    return model.to(dtype)


def _torchvision(name: str, size: int) -> nn.Module:
    if name.startswith("segmentation/"):
        heads = {"aux_loss": True} if "fcn" in name else {}
        make = getattr(torchvision.models.segmentation, name.removeprefix("segmentation/"))
        return make(weights=None, weights_backbone=None, **heads)
    sized = {"image_size": size} if name.startswith("vit") else {}
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **sized, **quick)


def _timm(name: str, size: int) -> nn.Module:
    options = {"window_size": 2} if name.startswith("swin") else {}
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError:  # made for any size
        return timm.create_model(name)


def _mask(model: nn.Module, pattern: str, share: float, *, seed: int = 3) -> None:
    """Zero rows, columns or single weights of all layers but the last; biases and shifts stay.

    Few columns (colours, depthwise convolutions) stay as they are, so that the output still depends on the input.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, _ConvNd))][:-1]
    for weight in weights:
        shape = list(weight.shape)
        if pattern != "scattered":
            dim = int(pattern == "columns")
            shape = [1] * dim + [weight.shape[dim]] + [1] * (weight.dim() - dim - 1)
        keep = torch.rand(shape, generator=generator) >= share
        keep |= torch.tensor(weight.shape[1 if pattern != "rows" else 0] <= FEW)
        with torch.no_grad():
            weight *= keep


def _spread(value: Tensor) -> float:
    return max(float((value - value.mean(0)).abs().max()), 1e-300)
