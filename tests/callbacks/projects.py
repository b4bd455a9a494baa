"""LightningModules that know nothing of this package, and the callbacks they are trained with."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fold.callbacks import (
    ChannelFolding,
    ChannelPruning,
    CompressionMonitor,
    LowRankFactorization,
    SmoothnessRegularization,
    SqueezeRelease,
)

# Each callback rewrites the network before these of four epochs, and some training follows.
EPOCHS = 4
REWRITES = {"squeeze-release": [2, 3], "prune": [2], "fold": [2], "factorize": [2], "monitor": [], "smoothness": []}
CALLBACKS = {
    "squeeze-release": lambda: SqueezeRelease(
        dense_epochs=1, cycles=2, shrink_epochs=0, masked_epochs=1, sparsity=[0.5], group_penalty=[0.5]
    ),
    "prune": lambda: ChannelPruning(keep=0.6, of="channels", at_epoch=2),
    "fold": lambda: ChannelFolding(keep=0.6, of="channels", at_epoch=2),
    "factorize": lambda: LowRankFactorization(keep=0.6, at_epoch=2),
    "monitor": lambda: CompressionMonitor(),
    "smoothness": lambda: SmoothnessRegularization({"nuclear_norm": 0.01, "first_difference": 0.02}, every=2),
}


class Project(lightning.LightningModule):
    """Scales its inputs in ``training_step``; a parameter of its own beside the network."""

    def __init__(self, optimization="plain"):
        super().__init__()
        self.optimization, self.automatic_optimization = optimization, optimization not in ("manual", "several")
        self.net = nn.Sequential(nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
        self.temperature = nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        images, targets = batch
        loss = nn.functional.cross_entropy(self.temperature * self.net(images.flatten(1) * 2), targets)
        if not self.automatic_optimization:
            self.step_by_hand(loss)
        return loss

    def step_by_hand(self, loss):
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.step()
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers() or []:
                scheduler.step()

    def validation_step(self, batch, batch_idx):
        right = (self.net(batch[0].flatten(1) * 2).argmax(1) == batch[1]).float().mean()
        self.log("accuracy/val", right, sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("accuracy/test", (self.net(batch[0].flatten(1) * 2).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        if self.optimization == "several":
            parts = [*self.net[:3].parameters()], [*self.net[3:].parameters(), self.temperature]
            both = torch.optim.AdamW(parts[0], lr=0.02), torch.optim.SGD(parts[1], lr=0.1, momentum=0.9)
            return list(both), [torch.optim.lr_scheduler.StepLR(each, 1, 0.9) for each in both]
        groups = [{"params": self.net.parameters()}, {"params": [self.temperature], "lr": 0.001}]
        optimizer = torch.optim.AdamW(groups, lr=0.02)
        if self.optimization == "steps":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.05, 0.01], total_steps=3 * EPOCHS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        if self.optimization == "plateau":
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "accuracy/val"}}
        return optimizer


def tensors(examples=96):
    """Images of 6 x 6 pixels whose class is the brightest of their three pairs of columns."""
    images = torch.rand(examples, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    targets = images.reshape(examples, 6, 3, 2).mean((1, 3)).argmax(1)
    return TensorDataset(
        images + 0.8 * nn.functional.one_hot(targets, 3).repeat_interleave(2, 1)[:, None, None], targets
    )


def loader(batch_size=32):
    return DataLoader(tensors(), batch_size=batch_size)


def project(optimization="plain"):
    torch.manual_seed(3)
    return Project(optimization)
