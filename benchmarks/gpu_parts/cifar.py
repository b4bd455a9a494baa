"""CIFAR-10 as whole tensors on one device, with random crops and mirror images made there."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = "cifar-10-batches-py"
TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
PADDING = 4

# The data modules of this package normalise with these (ImageNet's), in units of 0 to 255.
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Cifar:
    """Images (N, 32, 32, 3) uint8, training ones (N, 40, 40, 3) with a border of the mean colour, and classes (N,)."""

    train: Tensor
    train_targets: Tensor
    test: Tensor
    test_targets: Tensor

    def to(self, device: torch.device) -> "Cifar":
        """The same on another device."""
        return Cifar(*(tensor.to(device) for tensor in vars(self).values()))

    def augmented(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Training images of these indices, each shifted by up to 4 pixels, half of them mirrored, and classes."""
        count, device = len(chosen), chosen.device
        shift = torch.randint(0, 2 * PADDING + 1, (2, count, 1), device=device)
        pixels = torch.arange(32, device=device)
        mirrored = torch.rand(count, 1, device=device) < 0.5
        rows, columns = shift[0] + pixels, shift[1] + torch.where(mirrored, 31 - pixels, pixels)
        images = self.train[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return normalise(images), self.train_targets[chosen]

    def plain(self, count: int, seed: int = 0) -> Tensor:
        """So many training images as they are, chosen at random, normalised."""
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:count]
        inner = slice(PADDING, 32 + PADDING)
        return normalise(self.train[chosen.to(self.train.device), inner, inner])


def normalise(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, channels last in memory."""
    mean, deviation = (images.new_tensor(values, dtype=torch.float32) for values in (MEAN, DEVIATION))
    return ((images.float() - mean) / deviation).permute(0, 3, 1, 2)


def read(folder: Path, limit: int | None = None) -> Cifar:
    """The data in a folder that holds ``cifar-10-batches-py``, or its first ``limit`` images of each part.

    Raises:
        FileNotFoundError: the six files are not there.
    """
    place = folder / FOLDER
    if missing := [name for name in (*TRAINING, TEST) if not (place / name).is_file()]:
        raise FileNotFoundError(f"{str(place)!r} lacks {', '.join(missing)}; give the folder that holds {FOLDER!r}.")
    parts = [read_batch(place / name) for name in TRAINING]
    train, targets = (torch.cat(values)[:limit] for values in zip(*parts, strict=True))
    test, test_targets = (value[:limit] for value in read_batch(place / TEST))
    padded = torch.tensor(MEAN).round().to(torch.uint8).repeat(len(train), 32 + 2 * PADDING, 32 + 2 * PADDING, 1)
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = train
    return Cifar(padded, targets, test, test_targets)


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """One of the published files: images (N, 32, 32, 3) uint8 and classes (N,) int64."""
    with path.open("rb") as file:
        content = pickle.load(file, encoding="bytes")
    images = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return torch.from_numpy(np.ascontiguousarray(images)), torch.tensor(content[b"labels"])


def write_batch(path: Path, images: np.ndarray, targets: list[int]) -> None:
    """A file that :func:`read_batch` reads, of images (N, 32, 32, 3) uint8."""
    data = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    with path.open("wb") as file:
        pickle.dump({b"data": data, b"labels": targets}, file)
