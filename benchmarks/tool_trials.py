"""The tools of other_tools.py, and what is tried with each without training: a function returns the text of a cell."""

import time
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import prune as masks
from torch.utils.data import DataLoader, TensorDataset

import lightning_fold as lf
from benchmarks.networks import Case, build, error_of, estimate_statistics
from benchmarks.published_tools import SHARES, TOOLS
from lightning_fold.models import CifarResNet

FOLD, GRAPH, SIMPLIFY, MASKS = "lightning-fold", "Torch-Pruning", "simplify", "torch masks"
Rewrite = Callable[[nn.Module, Tensor], nn.Module]


def masked(model: nn.Module, images: Tensor) -> nn.Module:
    """Masks of torch.nn.utils.prune over the zeros, made permanent."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            masks.custom_from_mask(layer, "weight", layer.weight != 0)
            masks.remove(layer, "weight")
    return model


def unfused(model: nn.Module, images: Tensor) -> nn.Module:
    """The tool simplify without merging BatchNorms into convolutions."""
    return import_module("simplify").simplify(model, images[:1], fuse_bn=False)


# What removes zeros; of several ways, the one with the smallest error counts.
REMOVE: dict[str, dict[str, Rewrite]] = {
    FOLD: {"": TOOLS["lightning-fold"]},
    GRAPH: {"": TOOLS["torch-pruning"]},
    SIMPLIFY: {"": TOOLS["simplify"], " (fuse_bn=False)": unfused},
    MASKS: {"": masked},
}


def exact(tool: str, network: str, *, norms: bool) -> str:
    """Remove channels whose filters are zero: error of the outputs relative to their spread, and the factor.

    Args:
        tool: name of the tool.
        network: name and image size, as in :func:`benchmarks.networks.build`.
        norms: zero biases and BatchNorms of these channels, too.
    """
    case = build(network, "rows", shares=SHARES)
    if norms:
        _clear_norms(case)
    images, before, found, failures = case.images(4), lf.count_parameters(case.model), [], []
    for way, remove in REMOVE[tool].items():
        try:
            small = remove(deepcopy(case.model), images).eval()
            found.append((error_of(small, case.model, images), before / lf.count_parameters(small), way))
        except TimeoutError:
            raise
        except Exception as failure:  # noqa: BLE001  (the other way may work)
            failures.append(failure)
    if not found:
        raise failures[-1]
    error, factor, way = min(found)
    return f"{'exact' if error < 1e-10 else f'error {error:.1g}'}, {factor:.1f}x{way}"


def _clear_norms(case: Case) -> None:
    layers = [m for m in case.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    with torch.no_grad():
        for layer, after in pairwise(layers):
            if not isinstance(layer, nn.BatchNorm2d):
                zero = (layer.weight.flatten(1) == 0).all(1)
                tensors = [layer.bias, *(after.parameters() if isinstance(after, nn.BatchNorm2d) else [])]
                for tensor in filter(lambda each: each is not None, tensors):
                    tensor[zero] = 0
    estimate_statistics(case.model, case.images(8, seed=2))


def halve(tool: str) -> str:
    """Bring a trained ResNet-8 to half of its parameters by L2 norms, without training or data: test accuracy.

    Of several ways the one with the best accuracy counts.
    """
    torch.set_default_dtype(torch.float32)
    dense, images, digits = _trained_resnet()
    found = []
    for way in HALVE[tool]:
        small = _half(dense, images, way)
        if small is not None:
            found.append((_accuracy(small, images, digits), lf.count_parameters(small)))
    accuracy, after = max(found)
    size = after / lf.count_parameters(dense)
    return f"{_accuracy(dense, images, digits):.1%} -> {accuracy:.1%} at {size:.0%} of the size"


def _half(dense: nn.Module, images: Tensor, way: "Halving") -> nn.Module | None:
    """The first network of at most half of the size, as the share to remove grows; masks keep the size."""
    for step in range(10, 40):
        small = way(deepcopy(dense), images, step / 40)
        if way in (_by_fold, _by_masks) or lf.count_parameters(small) <= 0.505 * lf.count_parameters(dense):
            return small
    return None


def halving_time(tool: str) -> str:
    """Seconds of CPU time that the tool needs to remove 30 % of the channels of ResNet-18, half of the parameters."""
    torch.set_default_dtype(torch.float32)
    model, images = (
        build("torchvision/resnet18:64", "rows", dtype=torch.float32, shares=(0.0,)).model,
        torch.rand(8, 3, 64, 64),
    )
    start = time.process_time()
    HALVE[tool][-1](model, images, 0.3)
    return f"{time.process_time() - start:.1f} s"


def _trained_resnet() -> tuple[nn.Module, Tensor, Tensor]:
    if not _TRAINED:
        torch.manual_seed(0)
        network = CifarResNet(depth=8, in_channels=1, widths=[16, 32, 64], shortcut="B")
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(15):
            for images, digits in DataLoader(digits_part(slice(0, 1400)), batch_size=64, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images), digits).backward()
                optimizer.step()
        _TRAINED.append(network.eval())
    images, digits = digits_part(slice(1400, None)).tensors
    return _TRAINED[0], images, digits


_TRAINED: list[Any] = []


def digits_part(part: slice) -> TensorDataset:
    """Some of scikit-learn's digits, and what they are."""
    images, digits = load_digits(return_X_y=True)
    images = torch.tensor(images[part], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return TensorDataset(images, torch.tensor(digits[part]))


def _accuracy(network: nn.Module, images: Tensor, digits: Tensor) -> float:
    with torch.no_grad():
        return float((network.eval()(images).argmax(1) == digits).float().mean())


Halving = Callable[[nn.Module, Tensor, float], nn.Module]


def _by_graph(model: nn.Module, images: Tensor, share: float, *, everywhere: bool = False) -> nn.Module:
    tool: Any = import_module("torch_pruning")
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    importance = tool.importance.GroupMagnitudeImportance(p=2)
    options: dict[str, Any] = {"importance": importance, "pruning_ratio": share, "ignored_layers": last}
    tool.pruner.BasePruner(model, images[:1], global_pruning=everywhere, **options).step()
    return model


def _by_graph_everywhere(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    return _by_graph(model, images, share, everywhere=True)


def _by_simplify(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    return TOOLS["simplify"](_with_zero_filters(model, share), images)


def _by_simplify_unfused(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    return unfused(_with_zero_filters(model, share), images)


def _with_zero_filters(model: nn.Module, share: float) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            masks.ln_structured(layer, "weight", amount=share, n=2, dim=0)
            masks.remove(layer, "weight")
    return model


def _by_masks(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    layers = [(module, "weight") for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    masks.global_unstructured(layers, pruning_method=masks.L1Unstructured, amount=0.5)
    return model


def _by_fold(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    lf.prune(model, images[:8])
    return model


HALVE: dict[str, list[Halving]] = {
    FOLD: [_by_fold],
    GRAPH: [_by_graph, _by_graph_everywhere],
    SIMPLIFY: [_by_simplify, _by_simplify_unfused],
    MASKS: [_by_masks],
}
