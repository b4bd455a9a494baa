"""Common base of all data modules: loaders for three splits, and a sample order that a restart does not change."""

from typing import Any, NamedTuple

import lightning
from torch.utils.data import DataLoader, Dataset

from lightning_fold.data.datasets import EpochDataset, EpochSampler
from lightning_fold.errors import ArgumentError


class Splits(NamedTuple):
    """The three parts of a dataset."""

    train: EpochDataset
    val: EpochDataset
    test: EpochDataset


class ClassificationDataModule(lightning.LightningDataModule):
    """Base class of the data modules; subclasses implement the loading of the splits.

    The order of training samples is a function of (seed, epoch), and their augmentation of (seed, epoch, index). Both
    come from :class:`lightning_fold.data.datasets.EpochSampler`, which gets the epoch from Lightning. Neither depends
    on the state of the global generators or on restarts of the run. Training drops an incomplete last batch (each
    epoch leaves out different samples); evaluation drops nothing.

    Args:
        batch_size: Samples per batch and process, at least 1.
        num_workers: Processes that load data; 0 loads in the training process.
        seed: Seed of the split (if it is random), the order and the augmentation.

    Raises:
        ArgumentError: batch_size is below 1, or num_workers is below 0.
    """

    num_classes: int

    def __init__(self, batch_size: int = 256, num_workers: int = 0, seed: int = 42) -> None:
        super().__init__()
        if batch_size < 1:
            raise ArgumentError(f"{type(self).__name__}(batch_size={batch_size}): expected at least 1")
        if num_workers < 0:
            raise ArgumentError(f"{type(self).__name__}(num_workers={num_workers}): expected at least 0")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._splits: Splits | None = None

    def load_splits(self) -> Splits:
        """Load the data; called once per process, before the first loader is created."""
        raise NotImplementedError

    @property
    def splits(self) -> Splits:
        """Training, validation and test set, loaded on first use."""
        if self._splits is None:
            self._splits = self.load_splits()
        return self._splits

    def setup(self, stage: str) -> None:
        """Load the data, so that a missing folder is reported before training starts."""
        _ = self.splits

    def train_dataloader(self) -> DataLoader:
        """Batches for training, in an order drawn from (seed, epoch)."""
        train = self.splits.train
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(train, replicas, rank, self.seed)
        return self._loader(train, sampler=sampler, drop_last=len(sampler) >= self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation set, in fixed order."""
        return self._loader(self.splits.val)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test set, in fixed order."""
        return self._loader(self.splits.test)

    def predict_dataloader(self) -> DataLoader:
        """Batches of the test set, in fixed order."""
        return self._loader(self.splits.test)

    def _loader(self, dataset: Dataset, sampler: EpochSampler | None = None, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_already_a_batch if hasattr(dataset, "__getitems__") else None,
            drop_last=drop_last,
        )


def _already_a_batch(batch: Any) -> Any:
    return batch
