"""The project of plain_project.py plus one callback: the network shrinks, and the best small one is kept."""

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_fold.callbacks import SqueezeRelease


class Digits(lightning.LightningModule):
    """Classifies handwritten digits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * 16, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, digits = batch
        return nn.functional.cross_entropy(self.backbone(images), digits)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy: share of correct predictions."""
        images, digits = batch
        self.log("val_acc", (self.backbone(images).argmax(1) == digits).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict:
        """AdamW with a cosine schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loaders() -> tuple[DataLoader, DataLoader]:
    """Batches for training and validation."""
    images, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(digits))
    train, val = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=360)


def main() -> lightning.Trainer:
    """Train and compress the network."""
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        max_epochs=12,
        accelerator="cpu",
        callbacks=[
            ModelCheckpoint(monitor="compressed/accuracy", mode="max"),  # the best of the small ones
            SqueezeRelease(dense_epochs=4, cycles=3, sparsity=[0.4], monitor="val_acc"),
        ],
    )
    trainer.fit(Digits(), *loaders())
    return trainer


if __name__ == "__main__":
    main()
