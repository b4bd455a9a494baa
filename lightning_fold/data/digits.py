"""The handwritten digits that come with scikit-learn."""

import torch

from lightning_fold.data.base import ClassificationDataModule, Splits
from lightning_fold.data.datasets import TensorImages


class DigitsDataModule(ClassificationDataModule):
    """1,797 real images of handwritten digits, included in scikit-learn; nothing to download.

    Images are ``(1, 8, 8)`` float32 in [0, 1]; ten classes. A random split, stratified by class, gives 1,257 images
    for training, 180 for validation and 360 for testing.

    Args:
        batch_size: Samples per batch and process, at least 1.
        num_workers: Processes that load data; 0 loads in the training process, which is fastest here.
        seed: Seed of the split and the order.
    """

    num_classes = 10

    def __init__(self, batch_size: int = 64, num_workers: int = 0, seed: int = 42) -> None:
        super().__init__(batch_size, num_workers, seed)

    def load_splits(self) -> Splits:
        """Split scikit-learn's digits."""
        from sklearn.datasets import load_digits  # takes a second to import, and only these data need it
        from sklearn.model_selection import train_test_split

        images, targets = load_digits(return_X_y=True)
        rest, test = train_test_split(range(len(targets)), test_size=360, stratify=targets, random_state=self.seed)
        train, val = train_test_split(rest, test_size=180, stratify=targets[rest], random_state=self.seed)
        images = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)
        targets = torch.from_numpy(targets)
        return Splits(
            *(TensorImages(images[part], targets[part], mean=[0.0], std=[16.0]) for part in (train, val, test))
        )
