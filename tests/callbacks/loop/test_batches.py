"""Batches taken outside the training loop are what ``training_step`` is given, and the loop does not notice."""

import lightning
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fold.callbacks import ChannelFolding, LowRankFactorization
from lightning_fold.callbacks.loop.batches import training_batches


class Project(lightning.LightningModule):
    """Keeps what its training step is given; a hook makes images out of bytes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        self.given = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        scaled = (lambda b: {"x": b["x"].to(self.net[0].weight.dtype) / 255, "y": b["y"]}) if self.training else None
        if isinstance(batch, dict) and "x" not in batch:
            return {key: scaled(value) for key, value in batch.items()}
        return [scaled(each) for each in batch] if isinstance(batch, list) else scaled(batch)

    def training_step(self, batch):
        self.given.append(batch)
        parts = [batch] if "x" in batch else list(batch.values()) if isinstance(batch, dict) else batch
        return sum(nn.functional.cross_entropy(self.net(part["x"]), part["y"]) for part in parts)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Take(lightning.Callback):
    """Takes three batches before the first step of the first epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0 and trainer.current_epoch == 0:
            self.taken = training_batches(trainer, pl_module, 3)


def loader(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(256, (24, 6), generator=generator), torch.randint(3, (24,), generator=generator)
    return DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], batch_size=6, **options)


LOADERS = {
    "one": loader,
    "mapping": lambda: {"a": loader(), "b": loader(1)},
    "list": lambda: [loader(), loader(1)],
    "combined": lambda: CombinedLoader({"a": loader(), "b": DataLoader(loader(1).dataset, batch_size=9)}, "min_size"),
    "workers that stay": lambda: loader(num_workers=1, persistent_workers=True, multiprocessing_context="fork"),
}


@pytest.mark.parametrize("loaders", LOADERS)
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_batches_are_those_of_the_training_step(make_trainer, loaders, precision):
    alone, watched, take = Project(), Project(), Take()
    make_trainer(2, precision=precision).fit(alone, LOADERS[loaders]())
    make_trainer(2, take, precision=precision).fit(watched, LOADERS[loaders]())
    torch.testing.assert_close(take.taken, watched.given[:3], rtol=0, atol=0)
    torch.testing.assert_close(watched.given, alone.given, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("loaders", "precision"), [("one", "64-true"), ("one", "bf16-true"), ("mapping", "32-true"), ("list", "32-true")]
)
def test_rewrite_that_looks_at_batches(make_trainer, loaders, precision):
    for callback in (
        ChannelFolding(keep=0.5, of="channels", compensate="least-squares", batches=2, at_epoch=1),
        LowRankFactorization(keep=0.7, batches=2),
    ):
        module = Project()
        make_trainer(2, callback, precision=precision).fit(module, LOADERS[loaders]())
        assert sum(p.numel() for p in module.net.parameters()) < sum(p.numel() for p in Project().net.parameters())


def test_no_loader_no_batches(make_trainer):
    trainer, module = make_trainer(1), Project()
    trainer.validate(Plain(), DataLoader(TensorDataset(torch.randn(4, 6)), batch_size=2), verbose=False)
    assert training_batches(trainer, module, 3) == []


class Plain(Project):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch

    def validation_step(self, batch):
        self.log("loss", self.net(batch[0]).square().mean())
