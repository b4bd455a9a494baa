"""Write CIFAR-10, or scikit-learn's digits, as an image folder: FOLDER/{train,val,test}/<class>/<number>.png.

python examples/image_folder.py images
python examples/image_folder.py images --source digits --train 1000 --val 200 --test 400
"""

from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import auto_cli
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

Part = tuple[np.ndarray, np.ndarray]  # images (N, H, W) or (N, H, W, 3) uint8, and class indices (N,)


def write_images(folder: Path, part: Part, classes: list[str]) -> None:
    """Write each image to the folder of its class.

    Args:
        folder: created if it does not exist.
        part: images and classes.
        classes: names of the classes.
    """
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (image, index) in enumerate(zip(*part, strict=True)):
        Image.fromarray(image).save(folder / classes[index] / f"{number:05d}.png")


def read_cifar10(data_dir: str, download: bool) -> tuple[Part, Part, list[str]]:
    """CIFAR-10 from torchvision: training part, test part and class names."""
    parts = [CIFAR10(data_dir, train=train, download=download) for train in (True, False)]
    train, test = ((part.data, np.array(part.targets)) for part in parts)
    return train, test, parts[0].classes


def read_digits() -> tuple[Part, Part, list[str]]:
    """Scikit-learn's 1,797 digits in the same form; the last 500 are the test part."""
    images, targets = load_digits(return_X_y=True)
    images = (images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return (images[:-500], targets[:-500]), (images[-500:], targets[-500:]), [str(digit) for digit in range(10)]


def draw(part: Part, first: int, second: int, seed: int) -> tuple[Part, Part]:
    """Two disjoint random sets of ``first`` and ``second`` images of ``part``, balanced over the classes."""
    images, targets = part
    if first + second > len(images):
        raise ValueError(f"expected at most {len(images)} images of this part, found {first} + {second}")
    order = np.random.default_rng(seed).permutation(len(images))
    by_class = [order[targets[order] == index] for index in np.unique(targets)]
    turns = [number for turn in zip_longest(*by_class) for number in turn if number is not None]
    chosen = turns[:first], turns[first : first + second]
    return (images[chosen[0]], targets[chosen[0]]), (images[chosen[1]], targets[chosen[1]])


def main(
    output: str,
    source: Literal["cifar10", "digits"] = "cifar10",
    train: int = 10_000,
    val: int = 1_000,
    test: int = 2_000,
    data_dir: str = "data",
    download: bool = True,
    seed: int = 42,
) -> None:
    """Write a dataset as an image folder.

    Args:
        output: folder to write; it must be empty or not exist.
        source: the dataset.
        train: number of training images, drawn from the dataset's training part, balanced over the classes.
        val: number of validation images, drawn from the rest of that part in the same way.
        test: number of test images, drawn from the dataset's test part in the same way.
        data_dir: folder that holds (or receives) ``cifar-10-batches-py``.
        download: whether to download CIFAR-10 if it is missing.
        seed: seed of the random draw.

    Raises:
        ValueError: the output is not empty, or the dataset has too few images.
    """
    folder = Path(output)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{str(folder)!r} is not empty; give another folder as output")
    known, held_out, classes = read_cifar10(data_dir, download) if source == "cifar10" else read_digits()
    drawn, rest = draw(known, train, val, seed)
    write_images(folder / "train", drawn, classes)
    write_images(folder / "val", rest, classes)
    write_images(folder / "test", draw(held_out, test, 0, seed)[0], classes)


if __name__ == "__main__":
    auto_cli(main)
