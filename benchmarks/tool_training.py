"""What is tried with every tool of other_tools.py in training: a rewrite between epochs, then resuming, and files."""

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from torch import Tensor, nn
from torch.nn.utils import prune as masks
from torch.utils.data import DataLoader

import lightning_fold as lf
from benchmarks.tool_trials import FOLD, GRAPH, HALVE, MASKS, digits_part
from lightning_fold.callbacks import ChannelPruning


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
            small = HALVE[self.tool][-1](pl_module.backbone.eval(), torch.zeros(2, 1, 8, 8), 0.5)
            pl_module.backbone = small.train()


class Watch(lightning.Callback):
    """Sees which tensors of the network move in the last epoch, and which ones the optimizer knew before it."""

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the tensors before the first step of the last epoch."""
        if batch_idx == 0:
            self.before = [_sum_of(tensor) for tensor in pl_module.parameters()]  # no copies: they would not follow
            state = trainer.optimizers[0].state
            self.known = sum("exp_avg" in state.get(tensor, {}) for tensor in pl_module.parameters())

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what has moved; Lightning's own callback removes its masks after the last step."""
        now = [_sum_of(tensor) for tensor in pl_module.parameters()]
        self.moved = sum(left != right for left, right in zip(self.before, now, strict=True))


def _sum_of(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())


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
    trainer.fit(module, DataLoader(digits_part(slice(0, 512)), batch_size=64), ckpt_path=resume)
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
    small = HALVE[tool][-1](small_network().eval(), images, 0.5).eval()
    with tempfile.TemporaryDirectory() as folder:
        read = _written_and_read(tool, small, Path(folder) / "small.pt")
    if not torch.equal(read(images), small(images)):
        return "another network"
    return f"equal, {lf.count_parameters(read):,} of {lf.count_parameters(small_network()):,} parameters"


def _written_and_read(tool: str, small: nn.Module, path: Path) -> nn.Module:
    if tool == FOLD:
        lf.save(small, str(path), network="benchmarks.tool_training.small_network")
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
