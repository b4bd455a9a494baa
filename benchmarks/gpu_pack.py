"""The part of gpu_pack.sh that compresses images and unpacks what was carried; needs numpy, Pillow and torch.

Each of CIFAR-10's six files becomes one lossless WebP picture of 100 x 100 images, 16 MiB, and its classes.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_parts.cifar import FOLDER, TEST, TRAINING, read_batch, write_batch

PART_LIMIT = 56 * 2**20
PARTS = {"part-1": TRAINING[:3], "part-2": (*TRAINING[3:], TEST)}
COLUMNS = 100


def compress(data: Path, pack: Path) -> None:
    """Write the images of ``data`` as the parts of ``pack``.

    Raises:
        ValueError: a part is too large.
    """
    for part, names in PARTS.items():
        (pack / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            images, targets = read_batch(data / FOLDER / name)
            write_picture(pack / part / name, images.numpy(), targets.tolist())
        size = sum(file.stat().st_size for file in (pack / part).iterdir())
        if size >= PART_LIMIT:
            raise ValueError(f"{part} has {size:,} bytes; expected less than {PART_LIMIT:,}.")
        sys.stdout.write(f"{part}: {size / 2**20:.1f} MiB\n")


def write_picture(path: Path, images: np.ndarray, targets: list[int]) -> None:
    """Write images (N, 32, 32, 3) uint8 as ``path.webp``, and classes and a checksum as ``path.json``."""
    columns = min(COLUMNS, len(images))
    rows = len(images) // columns
    grid = images.reshape(rows, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(32 * rows, 32 * columns, 3)
    Image.fromarray(grid).save(path.with_suffix(".webp"), lossless=True, quality=75, method=4)
    about = {"targets": targets, "sha256": _checksum(images)}
    path.with_suffix(".json").write_text(json.dumps(about))


def read_picture(path: Path) -> tuple[np.ndarray, list[int]]:
    """What :func:`write_picture` wrote.

    Raises:
        ValueError: the images are not those that were written.
    """
    grid = np.asarray(Image.open(path.with_suffix(".webp")).convert("RGB"))
    rows, columns = grid.shape[0] // 32, grid.shape[1] // 32
    images = grid.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    about = json.loads(path.with_suffix(".json").read_text())
    if _checksum(images) != about["sha256"]:
        raise ValueError(f"{path.with_suffix('.webp')}: its images are not those that were packed.")
    return images, about["targets"]


def unpack(pack: Path) -> None:
    """Join the parts into ``pack/data``, and the wheels of what is not installed into ``pack/site``."""
    (pack / "data" / FOLDER).mkdir(parents=True, exist_ok=True)
    for part, names in PARTS.items():
        for name in names:
            write_batch(pack / "data" / FOLDER / name, *read_picture(pack / part / name))
    unpack_wheels(pack, _installed)


def unpack_wheels(pack: Path, installed: Callable[[str], bool]) -> None:
    """Unpack each wheel of ``pack/wheels`` whose distribution is not installed into ``pack/site``."""
    (pack / "site").mkdir(exist_ok=True)
    for wheel in sorted((pack / "wheels").glob("*.whl")):
        name = wheel.name.partition("-")[0]
        if not installed(name):
            sys.stdout.write(f"unpacks {name}\n")
            zipfile.ZipFile(wheel).extractall(pack / "site")


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _checksum(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"compress": compress, "unpack": unpack}[command](*map(Path, paths))
