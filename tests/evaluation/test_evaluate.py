"""Metrics of a network in the place of another."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_fold.evaluation.evaluate import evaluate

INPUTS = torch.arange(12.0).reshape(6, 2)


class Mean(lightning.LightningModule):
    """Logs the mean of what its network gives."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 1)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("mean", self.network(batch).mean())


class TwoLoaders(lightning.LightningDataModule):
    def test_dataloader(self):
        return [DataLoader(INPUTS[:2], batch_size=2), DataLoader(INPUTS[2:], batch_size=4)]


def test_metrics_of_several_loaders():
    module, other = Mean(), nn.Linear(2, 1)
    before = module.network
    found = evaluate(module, other, TwoLoaders(), "test", accelerator="cpu")
    assert module.network is before
    for index, rows in enumerate((INPUTS[:2], INPUTS[2:])):
        expected = float((rows @ other.weight.T + other.bias).mean())
        assert abs(found[f"mean/dataloader_idx_{index}"] - expected) < 1e-5
    assert evaluate(module, other, TwoLoaders(), "val") == {}
