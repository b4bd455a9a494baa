"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # tests run side by side, one per core


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with MNIST, CIFAR-10 and trained checkpoints, as torchvision lays them out."""
    folder = Path(os.environ.get("LIGHTNING_FOLD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set LIGHTNING_FOLD_DATA to a folder that holds MNIST and CIFAR-10")
    return folder
