"""Tiny data, networks and trainers for the callbacks."""

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import lightning_fold as lf
from lightning_fold.data.base import ClassificationDataModule, Splits
from lightning_fold.data.datasets import TensorImages
from lightning_fold.models import MLP
from lightning_fold.modules import Classifier
from lightning_fold.schedules import PhasedCosine


class TinyData(ClassificationDataModule):
    """Images of 6 x 6 pixels whose class is the brightest of their three pairs of columns."""

    num_classes = 3

    def load_splits(self):
        images = torch.rand(160, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        targets = images.reshape(160, 6, 3, 2).mean((1, 3)).argmax(1)
        images += 0.8 * nn.functional.one_hot(targets, 3).repeat_interleave(2, 1)[:, None, None]
        parts = (slice(0, 96), slice(96, 128), slice(128, 160))
        return Splits(*(TensorImages(images[part], targets[part], mean=[0.5], std=[0.5]) for part in parts))


def assert_same_network(one, other):
    """Of one structure, and of the same weights bit for bit."""
    assert lf.describe(one) == lf.describe(other)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm, dropout, a linear layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.dropout, self.linear = nn.Dropout(0.1), nn.Linear(8 * 9, 3)

    def forward(self, x):
        return self.linear(self.dropout(self.features(x).flatten(1)))


class Plain(lightning.LightningModule):
    """A module that knows nothing of this package."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.scale = backbone, nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.scale * self.backbone(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("accuracy/val", (self.backbone(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.log("accuracy/test", (self.backbone(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


NETWORKS = {
    "mlp": lambda: MLP(36, [12, 10], 3, input_dropout=0.1),
    "conv": ConvNet,
}


@pytest.fixture(scope="module")
def seed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "7")
        yield


@pytest.fixture(scope="module")
def make_classifier(seed):
    """Classifier of a tiny network, from a fixed seed."""

    def make(network="mlp", **arguments):
        torch.manual_seed(3)
        schedule = partial(PhasedCosine, epochs=[2, 4], starts=[1.0, 1.0], ends=[0.5, 0.1])
        optimizer = partial(torch.optim.AdamW, lr=0.02, weight_decay=0.05)
        built = NETWORKS[network]()
        return Classifier(built, num_classes=3, **{"optimizer": optimizer, "lr_scheduler": schedule, **arguments})

    return make


@pytest.fixture(scope="module")
def make_plain(seed):
    """LightningModule with ``self.backbone``, without dropout, that knows nothing of this package."""

    def make(network="mlp"):
        torch.manual_seed(3)
        module = Plain(NETWORKS[network]())
        for dropout in filter(lambda layer: isinstance(layer, nn.Dropout), module.modules()):
            dropout.p = 0.0
        return module

    return make


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory):
    """Silent trainer on the CPU."""
    folder = tmp_path_factory.mktemp("root")

    def make(epochs, *callbacks, **arguments):
        settings = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        }
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=folder,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **{**settings, **arguments},
        )

    return make


@pytest.fixture
def data():
    return TinyData(batch_size=32)


def save_every_epoch(folder):
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)


@pytest.fixture
def every_epoch(tmp_path):
    """Callback that saves a checkpoint ``N.ckpt`` after every epoch N."""
    return save_every_epoch(tmp_path / "all")


@pytest.fixture(scope="module")
def run_and_save(tmp_path_factory, make_trainer):
    """Train with callbacks, saving after every epoch; gives the folder with the checkpoints ``N.ckpt``."""

    def run(module, epochs, *callbacks):
        folder = tmp_path_factory.mktemp("run")
        make_trainer(epochs, *callbacks, save_every_epoch(folder)).fit(module, TinyData(batch_size=32))
        return folder

    return run
