"""MNIST, Fashion-MNIST and CIFAR-10, read with torchvision's loaders and kept in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision.datasets
from torch import Tensor

from lightning_fold.data.base import ClassificationDataModule, Splits
from lightning_fold.data.datasets import TensorImages
from lightning_fold.errors import ArgumentError, MissingFileError


class InMemoryDataModule(ClassificationDataModule):
    """Base class for torchvision datasets that fit into memory.

    Args:
        data_dir: Folder in which torchvision stores its datasets.
        download: Whether to download missing files.
        batch_size: Samples per batch and process, at least 1.
        val_size: Samples taken from the training set for validation, at least 1.
        augment: Whether to crop training images at random, and to mirror them if that does not change the class.
        num_workers: Processes that load data; 0 loads in the training process, which is fastest here.
        seed: Seed of the split, the order and the augmentation.

    Raises:
        ArgumentError: val_size is below 1, or not below the size of the training set (raised by ``setup``).
        MissingFileError: Files are missing and download is false, or the download failed; raised by
            ``prepare_data`` and ``setup``.
    """

    dataset_class: ClassVar[type]
    folder: ClassVar[str]
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]
    crop_padding: ClassVar[int]
    flip: ClassVar[bool]
    num_classes = 10

    def __init__(
        self,
        data_dir: str = "data",
        download: bool = True,
        batch_size: int = 256,
        val_size: int = 5000,
        augment: bool = False,
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if val_size < 1:
            raise ArgumentError(f"{type(self).__name__}(val_size={val_size}): expected at least 1")
        self.data_dir, self.download, self.val_size, self.augment = data_dir, download, val_size, augment

    def prepare_data(self) -> None:
        """Download missing files, if allowed; runs on one process only."""
        if self.download:
            for train in (True, False):
                self._read(train, download=True)

    def load_splits(self) -> Splits:
        """Read both parts and split the validation set off the training part."""
        images, targets = _tensors(self._read(train=True))
        if self.val_size >= len(images):
            raise ArgumentError(f"{type(self).__name__}(val_size={self.val_size}): expected less than {len(images)}")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        val, train = order[: self.val_size], order[self.val_size :]
        augmentation: dict[str, Any] = {"crop_padding": self.crop_padding, "flip": self.flip} if self.augment else {}
        return Splits(
            self._dataset(images[train], targets[train], seed=self.seed, **augmentation),
            self._dataset(images[val], targets[val]),
            self._dataset(*_tensors(self._read(train=False))),
        )

    def _dataset(self, images: Tensor, targets: Tensor, **augmentation: Any) -> TensorImages:
        mean, std = ([255 * value for value in values] for values in (self.mean, self.std))
        return TensorImages(images, targets, mean, std, **augmentation)

    def _read(self, train: bool, download: bool = False) -> Any:
        try:
            return self.dataset_class(self.data_dir, train=train, download=download)
        except (RuntimeError, OSError) as error:  # torchvision raises these for missing and corrupted files
            raise MissingFileError(self._missing(error)) from error

    def _missing(self, error: Exception) -> str:
        place = (Path(self.data_dir) / self.folder).absolute()
        remedy = "check the network connection" if self.download else "set data.init_args.download to true"
        return (
            f"{type(self).__name__}(data_dir={self.data_dir!r}, download={self.download}): no complete dataset in "
            f"{str(place)!r} ({error}). Set data.init_args.data_dir to the folder that contains {self.folder!r}, "
            f"or {remedy}."
        )


class MNISTDataModule(InMemoryDataModule):
    """MNIST: 70,000 handwritten digits, ``(1, 28, 28)`` float32, divided by their standard deviation; ten classes.

    55,000 images for training, 5,000 of torchvision's training part for validation, 10,000 for testing.

    Args:
        data_dir: Folder that holds (or receives) the folder ``MNIST``.
        download: Whether to download what is not there yet.
        batch_size: Samples per batch and process, at least 1.
        val_size: Samples taken from the training set for validation, at least 1.
        augment: Whether to shift training images by up to 2 pixels.
        num_workers: Processes that load data; 0 loads in the training process, which is fastest here.
        seed: Seed of the split, the order and the augmentation.
    """

    dataset_class = torchvision.datasets.MNIST
    folder = "MNIST"
    mean, std = (0.0,), (0.3081,)  # keeps the background at zero, so that dropping an input pixel erases it
    crop_padding, flip = 2, False


class FashionMNISTDataModule(InMemoryDataModule):
    """Fashion-MNIST: 70,000 images of clothes, ``(1, 28, 28)`` float32, normalised; ten classes.

    55,000 images for training, 5,000 of torchvision's training part for validation, 10,000 for testing.

    Args:
        data_dir: Folder that holds (or receives) the folder ``FashionMNIST``.
        download: Whether to download what is not there yet.
        batch_size: Samples per batch and process, at least 1.
        val_size: Samples taken from the training set for validation, at least 1.
        augment: Whether to shift training images by up to 2 pixels and mirror them.
        num_workers: Processes that load data; 0 loads in the training process, which is fastest here.
        seed: Seed of the split, the order and the augmentation.
    """

    dataset_class = torchvision.datasets.FashionMNIST
    folder = "FashionMNIST"
    mean, std = (0.2860,), (0.3530,)
    crop_padding, flip = 2, True


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10: 60,000 colour photographs, ``(3, 32, 32)`` float32; ten classes.

    Normalised with ImageNet's mean and standard deviation, as widely shared CIFAR-10 checkpoints expect. 45,000 images
    for training, 5,000 of torchvision's training part for validation, 10,000 for testing.

    Args:
        data_dir: Folder that holds (or receives) the folder ``cifar-10-batches-py``.
        download: Whether to download what is not there yet.
        batch_size: Samples per batch and process, at least 1.
        val_size: Samples taken from the training set for validation, at least 1.
        augment: Whether to shift training images by up to 4 pixels and mirror them.
        num_workers: Processes that load data; 0 loads in the training process, which is fastest here.
        seed: Seed of the split, the order and the augmentation.
    """

    dataset_class = torchvision.datasets.CIFAR10
    folder = "cifar-10-batches-py"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    crop_padding, flip = 4, True


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    """Images ``(N, C, H, W)`` uint8 and targets ``(N,)`` int64 of a torchvision dataset."""
    images = torch.as_tensor(dataset.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(dataset.targets)
