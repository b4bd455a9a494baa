"""What is tried with every tool in other_tools.py: one function a row, which returns the text of the cell."""

import tempfile
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import prune as masks
from torch.utils.data import DataLoader, TensorDataset

import lightning_fold as lf
from benchmarks.networks import Case, build, error_of, estimate_statistics
from benchmarks.published_tools import SHARES, TOOLS
from lightning_fold.callbacks import ChannelPruning
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


REMOVE: dict[str, Rewrite] = {
    FOLD: TOOLS["lightning-fold"],
    GRAPH: TOOLS["torch-pruning"],
    SIMPLIFY: TOOLS["simplify"],
    MASKS: masked,
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
    images = case.images(4)
    small = REMOVE[tool](deepcopy(case.model), images).eval()
    error, factor = error_of(small, case.model, images), lf.count_parameters(case.model) / lf.count_parameters(small)
    return f"{'exact' if error < 1e-10 else f'error {error:.1g}'}, {factor:.1f}x"


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
    """Bring a trained ResNet-8 to half of its parameters by L2 norms, without training or data: test accuracy."""
    torch.set_default_dtype(torch.float32)
    dense, images, digits = _trained_resnet()
    before = lf.count_parameters(dense)
    for step in range(1, 40):
        small = HALVE[tool](deepcopy(dense), images, step / 40)
        after = lf.count_parameters(small)
        if after <= 0.505 * before or tool in (FOLD, MASKS):
            return f"{_accuracy(small, images, digits):.1%} at {after / before:.0%} of the size"
    return "never reached half of the parameters"


def _trained_resnet() -> tuple[nn.Module, Tensor, Tensor]:
    if not _TRAINED:
        torch.manual_seed(0)
        network = CifarResNet(depth=8, in_channels=1, widths=[16, 32, 64], shortcut="B")
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(15):
            for images, digits in DataLoader(_digits(slice(0, 1400)), batch_size=64, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images), digits).backward()
                optimizer.step()
        _TRAINED.append(network.eval())
    return _TRAINED[0], *_digits(slice(1400, None)).tensors


_TRAINED: list[Any] = []


def _digits(part: slice) -> TensorDataset:
    images, digits = load_digits(return_X_y=True)
    images = torch.tensor(images[part], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return TensorDataset(images, torch.tensor(digits[part]))


def _accuracy(network: nn.Module, images: Tensor, digits: Tensor) -> float:
    with torch.no_grad():
        return float((network.eval()(images).argmax(1) == digits).float().mean())


def _by_graph(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    tool: Any = import_module("torch_pruning")
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    importance = tool.importance.GroupMagnitudeImportance(p=2)
    options: dict[str, Any] = {"importance": importance, "pruning_ratio": share, "ignored_layers": last}
    tool.pruner.BasePruner(model, images[:1], **options).step()
    return model


def _by_simplify(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    _zero_filters(model, share)
    return REMOVE[SIMPLIFY](model, images)


def _zero_filters(model: nn.Module, share: float) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            masks.ln_structured(layer, "weight", amount=share, n=2, dim=0)
            masks.remove(layer, "weight")


def _by_masks(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    layers = [(module, "weight") for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    masks.global_unstructured(layers, pruning_method=masks.L1Unstructured, amount=0.5)
    return model


def _by_fold(model: nn.Module, images: Tensor, share: float) -> nn.Module:
    lf.prune(model, images[:8])
    return model


HALVE: dict[str, Callable[[nn.Module, Tensor, float], nn.Module]] = {
    FOLD: _by_fold,
    GRAPH: _by_graph,
    SIMPLIFY: _by_simplify,
    MASKS: _by_masks,
}


class Digits(lightning.LightningModule):
    """A project that knows nothing of any tool."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def small_network() -> nn.Module:
    """Two convolutions and a linear layer."""
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(256, 10))


class Once(lightning.Callback):
    """Calls a tool on the network before epoch 1."""

    def __init__(self, tool: str) -> None:
        self.tool = tool

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Rewrite."""
        if trainer.current_epoch == 1:
            pl_module.backbone = HALVE[self.tool](pl_module.backbone.eval(), torch.zeros(2, 1, 8, 8), 0.5).train()


class Watch(lightning.Callback):
    """Sees which tensors of the network move in the last epoch, and which ones the optimizer knew before it."""

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the tensors before the first step of the last epoch."""
        if batch_idx == 0:
            self.before = [(tensor, tensor.detach().clone()) for tensor in pl_module.parameters()]
            state = trainer.optimizers[0].state
            self.known = sum("exp_avg" in state.get(tensor, {}) for tensor, _ in self.before)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what has moved; Lightning's own callback removes its masks after the last step."""
        self.moved = sum(not torch.equal(before, now) for now, before in self.before)


def _callback(tool: str) -> lightning.Callback:
    if tool == FOLD:
        return ChannelPruning(at_epoch=1)
    if tool == MASKS:
        return ModelPruning(
            "l1_unstructured", amount=lambda epoch: 0.5 if epoch == 0 else 0, use_global_unstructured=True
        )
    return Once(tool)


def _fit(tool: str, folder: str, *, epochs: int = 3, resume: str | None = None) -> tuple[Digits, Watch]:
    torch.set_default_dtype(torch.float32)
    lightning.seed_everything(0, verbose=False)
    module, watch = Digits(), Watch()
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[_callback(tool), watch, keep], deterministic=True, **quiet
    )
    trainer.fit(module, DataLoader(_digits(slice(0, 512)), batch_size=64), ckpt_path=resume)
    return module, watch


def trains_on(tool: str) -> str:
    """Rewrite in a Lightning callback before epoch 1: how many tensors move in that epoch."""
    with tempfile.TemporaryDirectory() as folder:
        _, watch = _fit(tool, folder, epochs=2)
    return f"{watch.moved} of {len(watch.before)} tensors move"


def optimizer_state(tool: str) -> str:
    """The same: how many tensors of the network have their moments in the optimizer right after the rewrite."""
    with tempfile.TemporaryDirectory() as folder:
        _, watch = _fit(tool, folder, epochs=2)
    return f"{watch.known} of {len(watch.before)} tensors"


def resumes(tool: str) -> str:
    """Resume from a checkpoint written after the rewrite, and compare with the run that was not interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        unbroken, _ = _fit(tool, folder)
        resumed, _ = _fit(tool, folder, resume=str(Path(folder) / "epoch=1.ckpt"))
    pairs = list(zip(unbroken.parameters(), resumed.parameters(), strict=True))
    equal = all(torch.equal(left, right) for left, right in pairs)
    zeros = [sum(int((tensor == 0).sum()) for tensor in side) for side in zip(*pairs, strict=True)]
    return "equal to the bit" if equal else f"differs: {zeros[0]} zeros unbroken, {zeros[1]} resumed"


def file_without_code(tool: str) -> str:
    """Write the small network, read it with ``weights_only=True``, and compare the outputs."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    images = torch.rand(4, 1, 8, 8)
    small = HALVE[tool](small_network().eval(), images, 0.5).eval()
    with tempfile.TemporaryDirectory() as folder:
        read = _written_and_read(tool, small, Path(folder) / "small.pt")
    return "yes" if torch.equal(read(images), small(images)) else "reads another network"


def _written_and_read(tool: str, small: nn.Module, path: Path) -> nn.Module:
    if tool == FOLD:
        lf.save(small, str(path), network="benchmarks.tool_trials.small_network")
        return lf.load(str(path)).eval()
    fresh = small_network().eval()
    if tool == GRAPH:
        own: Any = import_module("torch_pruning")
        torch.save(own.state_dict(small), path)
        return own.load_state_dict(fresh, torch.load(path, weights_only=True)).eval()
    if tool == MASKS:
        for layer in (module for module in small.modules() if masks.is_pruned(module)):
            if hasattr(layer, "weight_orig"):
                masks.remove(layer, "weight")
    torch.save(small.state_dict(), path)
    fresh.load_state_dict(torch.load(path, weights_only=True))
    return fresh
