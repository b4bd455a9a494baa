"""Data modules: batches of (inputs, targets) whose order and augmentation depend only on (seed, epoch, index)."""

from lightning_fold.data.base import ClassificationDataModule
from lightning_fold.data.digits import DigitsDataModule
from lightning_fold.data.folder import ImageFolderDataModule
from lightning_fold.data.in_memory import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule
from lightning_fold.data.text import TextDataModule

__all__ = [
    "CIFAR10DataModule",
    "ClassificationDataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "TextDataModule",
]
