"""Images in folders, one folder per class."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_fold.data.base import ClassificationDataModule, Splits
from lightning_fold.data.datasets import SeededSamples
from lightning_fold.errors import ArgumentError, MissingFileError


class ImageFolderDataModule(ClassificationDataModule):
    """Images in ``data_dir/{train,val,test}/<class>/``, scaled to one size.

    Batches hold normalised images ``(B, 3, image_size, image_size)`` float32 and class indices, in the alphabetical
    order of the class folders. The three parts must have the same classes.

    Args:
        data_dir: Folder that holds the folders train, val and test.
        image_size: Height and width of the images in pixels, at least 1.
        batch_size: Samples per batch and process, at least 1.
        augment: Whether to crop and mirror training images at random; otherwise centre crops, as in evaluation.
        mean: Mean of each colour channel in [0, 1]; ImageNet's by default.
        std: Standard deviation of each colour channel, above 0; ImageNet's by default.
        num_workers: Processes that load data; 0 loads in the training process.
        seed: Seed of the order and the augmentation.

    Raises:
        ArgumentError: image_size is below 1, or the parts have different classes (raised by ``setup``).
        MissingFileError: A folder does not exist or contains no images; raised by ``setup``.
    """

    def __init__(
        self,
        data_dir: str = "data",
        image_size: int = 224,
        batch_size: int = 64,
        augment: bool = True,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if image_size < 1:
            raise ArgumentError(f"ImageFolderDataModule(image_size={image_size}): expected at least 1")
        self.data_dir, self.image_size, self.augment = data_dir, image_size, augment
        self.mean, self.std = tuple(mean), tuple(std)

    def load_splits(self) -> Splits:
        """List the files in the three folders."""
        parts = {name: self._read(name) for name in Splits._fields}
        for name, part in parts.items():
            if part.classes != parts["train"].classes:
                raise ArgumentError(
                    f"ImageFolderDataModule(data_dir={self.data_dir!r}): classes in {name!r} are {part.classes}, "
                    f"expected those of 'train', {parts['train'].classes}. Use the same class folders in every part."
                )
        self.num_classes = len(parts["train"].classes)
        return Splits(*(SeededSamples(part, self._transform(name), self.seed) for name, part in parts.items()))

    def _read(self, name: str) -> ImageFolder:
        folder = Path(self.data_dir) / name
        try:
            return ImageFolder(folder)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"ImageFolderDataModule(data_dir={self.data_dir!r}): no images in {str(folder.absolute())!r}: {error}. "
                "Set data.init_args.data_dir to a folder with train, val and test, each with one folder per class."
            ) from error

    def _transform(self, name: str) -> v2.Compose:
        if name == "train" and self.augment:
            cut = [v2.RandomResizedCrop(self.image_size), v2.RandomHorizontalFlip()]
        else:
            cut = [v2.Resize(self.image_size * 8 // 7), v2.CenterCrop(self.image_size)]
        scale = v2.ToDtype(torch.float32, scale=True)
        return v2.Compose([v2.ToImage(), *cut, scale, v2.Normalize(self.mean, self.std)])
