"""Datasets whose samples depend only on (seed, epoch, index), and the sampler that tells them the epoch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler


class EpochDataset(Dataset):
    """A dataset with a length and a known epoch, so that augmentation is the same after a restart."""

    def __len__(self) -> int:
        """Return the number of samples."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of this epoch; called before the epoch's first sample is read."""


class EpochSampler(DistributedSampler):
    """Draws a shuffled order from (seed, epoch), on one or several processes, and tells the dataset the epoch.

    Lightning calls :meth:`set_epoch` before every training epoch with the number of completed epochs, which it
    restores on resume. With several processes, each of the ``num_replicas`` gets its own share of the samples.

    Args:
        dataset: Dataset to draw samples from.
        num_replicas: Number of processes, at least 1.
        rank: Index of this process, in [0, num_replicas).
        seed: Seed of the order.
    """

    def __init__(self, dataset: EpochDataset, num_replicas: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of this epoch."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]


class TensorImages(EpochDataset):
    """Images in memory as one tensor, normalised and augmented a whole batch at a time.

    Args:
        images: ``(N, C, H, W)``, uint8 or float, raw values.
        targets: ``(N,)`` class indices, int64.
        mean: Mean of each channel, in raw units, subtracted from the values.
        std: Divisor of each channel, in raw units, above 0.
        crop_padding: Zero pixels added on each side before a random crop of the original size; 0 for no crop.
        flip: Whether to mirror images horizontally with probability 1/2.
        seed: Seed of crops and flips.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        self.images, self.targets = images, targets
        self.mean = torch.tensor(mean).view(1, -1, 1, 1)
        self.std = torch.tensor(std).view(1, -1, 1, 1)
        self.crop_padding, self.flip, self.seed = crop_padding, flip, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Draw the crop offsets and flips of all images for this epoch."""
        if not (self.crop_padding or self.flip):
            return
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        self.offsets = torch.randint(2 * self.crop_padding + 1, (len(self), 2), generator=generator)
        self.flips = torch.rand(len(self), generator=generator) < (0.5 if self.flip else 0.0)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return ``(B, C, H, W)`` float32 images and ``(B,)`` targets for B indices; DataLoader calls this method."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        if self.crop_padding or self.flip:
            images = crop_and_flip(images, self.offsets[chosen], self.flips[chosen], self.crop_padding)
        return images.float().sub_(self.mean).div_(self.std), self.targets[chosen]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one ``(C, H, W)`` image and its target."""
        images, targets = self.__getitems__([index])
        return images[0], targets[0]


class SeededSamples(EpochDataset):
    """Any dataset of (image, target) with a random transform that depends only on (seed, epoch, index).

    Args:
        samples: Map-style dataset without a transform.
        transform: Image transform that draws from torch's global generator.
        seed: Seed of the transform.
    """

    def __init__(self, samples: Dataset, transform: Callable[[Any], Tensor], seed: int = 0) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)  # pyright: ignore[reportArgumentType]

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of this epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one transformed image and its target; the state of torch's global generator does not change."""
        image, target = self.samples[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(self.seed, self.epoch, index))  # GPU generators are not touched
            return self.transform(image), target


class TokenWindows(EpochDataset):
    """Windows of consecutive tokens with the next token as the target at each position, a whole batch at a time.

    Args:
        tokens: ``(N,)`` integers of any type, N above ``context``, or above twice that with ``shift``.
        context: T, the number of tokens in a window, at least 1.
        shift: Whether to start the first window of each epoch at a random one of the first T tokens.
        seed: Seed of these starting points.
    """

    def __init__(self, tokens: Tensor, context: int, shift: bool = False, seed: int = 0) -> None:
        self.tokens, self.context, self.shift, self.seed = tokens, context, shift, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        """Return the number of windows; it does not depend on the start of the first one."""
        return (len(self.tokens) - 1 - (self.context - 1 if self.shift else 0)) // self.context

    def set_epoch(self, epoch: int) -> None:
        """Draw the start of the first window of this epoch."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        self.first = int(torch.randint(self.context, (), generator=generator)) if self.shift else 0

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return ``(B, T)`` int64 tokens and their next tokens for B indices; DataLoader calls this method."""
        begins = self.first + self.context * torch.as_tensor(indices)
        windows = self.tokens[begins[:, None] + torch.arange(self.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one window and the next token at each of its positions."""
        tokens, targets = self.__getitems__([index])
        return tokens[0], targets[0]


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Crop every zero-padded image at its own offset, and mirror some of the crops.

    Args:
        images: ``(B, C, H, W)``.
        offsets: ``(B, 2)`` int64, top and left edge of each crop in the padded image, in [0, 2 * padding].
        flips: ``(B,)`` bool, which crops to mirror horizontally.
        padding: Zero pixels on each side.

    Returns:
        ``(B, C, H, W)``, same dtype.
    """
    batch, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(flips[:, None], columns.flip(1), columns) + offsets[:, 1:]
    rows = torch.arange(height) + offsets[:, :1]
    return padded[
        torch.arange(batch)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _mix(*parts: int) -> int:
    """Combine integers into one seed: a polynomial modulo the prime 2^61 - 1."""
    seed = 0
    for part in parts:
        seed = (seed * 6_364_136_223_846_793_005 + part + 1) % (2**61 - 1)
    return seed
