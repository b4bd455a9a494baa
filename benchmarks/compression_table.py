"""Every method without fine-tuning on trained CIFAR-10 networks: accuracy at several sizes, one table and one CSV.

    python benchmarks/compression_table.py --checkpoint resnet20.th --data DIR --output table.csv
    python benchmarks/compression_table.py --checkpoint runs/version_0/dense.pt --names resnet10 --data DIR

A checkpoint is a file that lightning-fold wrote, of any network, or the state dict (perhaps under "state_dict") of a
:class:`lightning_fold.models.CifarResNet` of three stages; its depth is read from it. DIR holds CIFAR-10 as torchvision
lays it out. Inputs are normalised with ImageNet mean and deviation, as in this package's data module and in the
checkpoints of akamaster/pytorch_resnet_cifar10. Rows that are in the CSV are not computed again. What folding wins and
loses on equal terms is printed below the table.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

import lightning_fold as lf
from lightning_fold.models import CifarResNet

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 256
FIELDS = ("network", "share", "method", "statistics", "repair", "parameters", "accuracy", "seconds", "notes")
SQUARES: dict[str, Any] = {"compensate": "least-squares"}


def reduce_and_factorize(
    model: nn.Module,
    example_inputs: Tensor,
    *,
    keep: float,
    batches: list[Tensor],
    reduce: Callable[..., lf.RewriteReport],
) -> lf.RewriteReport:
    """Fewer channels, then factors of low rank; each keeps the same share."""
    each, before = keep**0.5, lf.count_parameters(model)
    first = reduce(model, example_inputs, keep=each, batches=batches, repair="none", **SQUARES)
    second = lf.factorize(model, example_inputs, keep=each, batches=batches)
    return replace(second, parameters_before=before, notes=(*first.notes, *second.notes))


# method, where its statistics come from ("": it needs none), the function, its arguments
Method = tuple[str, str, Callable[..., lf.RewriteReport], dict[str, Any]]
METHODS: list[Method] = [
    ("prune l1", "", lf.prune, {"importance": "l1"}),
    ("prune l2", "", lf.prune, {"importance": "l2"}),
    ("prune l2 + bias", "predicted", lf.prune, {"compensate": "bias"}),
    ("prune l1 + least squares", "predicted", lf.prune, SQUARES | {"importance": "l1"}),
    ("prune l1 + least squares", "data", lf.prune, SQUARES | {"importance": "l1"}),
    ("prune l2 + least squares", "predicted", lf.prune, SQUARES),
    ("prune l2 + least squares", "data", lf.prune, SQUARES),
    ("prune activation + least squares", "data", lf.prune, SQUARES | {"importance": "activation"}),
    ("prune reconstruction + least squares", "data", lf.prune, SQUARES | {"importance": "reconstruction"}),
    ("fold", "", lf.fold, {"repair": "none"}),
    ("fold + Fold-AR", "", lf.fold, {"repair": "data-free"}),
    ("fold + least squares", "predicted", lf.fold, SQUARES | {"repair": "none"}),
    ("fold + least squares", "data", lf.fold, SQUARES | {"repair": "none"}),
    ("factorize", "", lf.factorize, {}),
    ("factorize", "data", lf.factorize, {}),
    ("prune + least squares, then factorize", "data", reduce_and_factorize, {"reduce": lf.prune}),
    ("fold + least squares, then factorize", "data", reduce_and_factorize, {"reduce": lf.fold}),
]

# fold against prune by L1 and L2 with the same help: method, statistics, repair
Key = tuple[str, str, str]
EQUAL_TERMS: list[tuple[str, Key, list[Key]]] = [
    ("raw", ("fold", "-", "none"), [("prune l1", "-", "none"), ("prune l2", "-", "none")]),
    ("without data", ("fold + Fold-AR", "-", "none"), [("prune l1", "-", "none"), ("prune l2", "-", "none")]),
    (
        "BatchNorm repaired",
        ("fold", "-", "BatchNorm"),
        [("prune l1", "-", "BatchNorm"), ("prune l2", "-", "BatchNorm")],
    ),
    *(
        (
            f"least squares ({where}), BatchNorm repair: {repair}",
            ("fold + least squares", where, repair),
            [("prune l1 + least squares", where, repair), ("prune l2 + least squares", where, repair)],
        )
        for where in ("predicted", "data")
        for repair in ("none", "BatchNorm")
    ),
]


def load_network(path: Path) -> nn.Module:
    """The network of a checkpoint, in evaluation mode."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    if "lightning_fold" in state:
        return lf.load(path)
    state = {key.removeprefix("module."): value for key, value in state.get("state_dict", state).items()}
    blocks = len({key.split(".")[1] for key in state if key.startswith("layer1.")})
    network = CifarResNet(6 * blocks + 2)
    network.load_state_dict(state)
    return network.eval()


def load_images(folder: Path, train: bool, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images, normalised, and their classes."""
    dataset = CIFAR10(folder, train=train)
    images = torch.from_numpy(dataset.data[:count]).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (images - mean) / deviation, torch.tensor(dataset.targets[:count])


def accuracy(network: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Per cent of the images whose class is found."""
    with torch.inference_mode():
        pairs = zip(images.split(BATCH), classes.split(BATCH), strict=True)
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in pairs)
    return 100 * right / len(images)


def measure(
    network: nn.Module, share: float, method: Method, batches: list[Tensor], test: tuple[Tensor, Tensor]
) -> Iterator[dict[str, Any]]:
    """Two rows of the table: one method as it is, and with BatchNorm statistics estimated again."""
    name, statistics, function, arguments = method
    compressed, start = deepcopy(network), time.perf_counter()
    given = {"batches": batches} if statistics == "data" else {}
    report = function(compressed, test[0][:2], keep=share, **arguments, **given)
    seconds = time.perf_counter() - start
    for repaired in (False, True):
        if repaired:
            lf.repair(compressed, batches)
        yield {
            "share": share,
            "method": name,
            "statistics": statistics or "-",
            "repair": "BatchNorm" if repaired else "none",
            "parameters": f"{report.parameters_after / report.parameters_before:.3f}",
            "accuracy": f"{accuracy(compressed, *test):.2f}",
            "seconds": f"{seconds:.0f}",
            "notes": "; ".join(report.notes),
        }


def rows(arguments: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """The rows that are not ``done``."""
    test = load_images(arguments.data, False, arguments.test_images)
    batches = list(load_images(arguments.data, True, arguments.images)[0].split(BATCH))
    for path, name in zip(arguments.checkpoint, arguments.names, strict=True):
        network = load_network(path)
        if (name, "1.0", "dense", "-", "none") not in done:
            yield {"network": name, "share": 1.0, "method": "dense", "statistics": "-", "repair": "none"} | {
                "parameters": "1.000",
                "accuracy": f"{accuracy(network, *test):.2f}",
            }
        for share in arguments.shares:
            for method in METHODS:
                both = {(name, str(share), method[0], method[1] or "-", repair) for repair in ("none", "BatchNorm")}
                chosen = method[0] in (arguments.methods or [method[0]])
                if chosen and (method[1] or "-") in arguments.statistics and not both <= done:
                    for row in measure(network, share, method, batches, test):
                        if (name, str(share), method[0], method[1] or "-", row["repair"]) not in done:
                            yield {"network": name} | row


def show(path: Path) -> None:
    """Print the CSV as a table, and where folding does not win."""
    with path.open() as file:
        found = list(csv.DictReader(file))
    table = Table(*FIELDS[:-1])
    for row in found:
        table.add_row(*(row[field] for field in FIELDS[:-1]))
    console = Console()
    console.print(table)
    for network, share in dict.fromkeys((row["network"], row["share"]) for row in found if row["method"] != "dense"):
        here = [row for row in found if (row["network"], row["share"]) == (network, share)]
        best = max(here, key=lambda row: float(row["accuracy"]))
        console.print(f"{network} at {share}: best is {best['method']} with {best['accuracy']} %")
        accuracies = {(row["method"], row["statistics"], row["repair"]): float(row["accuracy"]) for row in here}
        for terms, fold, prunings in EQUAL_TERMS:
            if {fold, *prunings} <= accuracies.keys():
                folded, pruned = accuracies[fold], [accuracies[pruning] for pruning in prunings]
                word = "wins" if folded > max(pruned) else "does not win"
                console.print(
                    f"  {terms}: folding {word}, {folded:.2f} % against {', '.join(f'{p:.2f}' for p in pruned)}"
                )


def main() -> None:
    """Write the CSV row by row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="trained networks")
    parser.add_argument("--names", nargs="+", help="what the table calls them; by default their files' names")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path("compression_table.csv"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.3], help="parameters kept")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these rows of the table")
    parser.add_argument("--statistics", nargs="+", default=["-", "predicted", "data"], help="and of them only these")
    parser.add_argument("--images", type=int, default=1024, help="training images for statistics; 256 are held out")
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.names = arguments.names or [path.stem.split("-")[0] for path in arguments.checkpoint]
    if len(set(arguments.names)) != len(arguments.checkpoint):
        parser.error(f"--names {arguments.names}: expected a name of its own for each checkpoint")
    torch.set_num_threads(arguments.threads)
    done: set[tuple[str, ...]] = set()
    if arguments.output.exists():
        with arguments.output.open() as file:
            done = {tuple(row[field] for field in FIELDS[:5]) for row in csv.DictReader(file)}
    with arguments.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        for row in rows(arguments, done):
            writer.writerow(row)
            file.flush()
    show(arguments.output)


if __name__ == "__main__":
    main()
