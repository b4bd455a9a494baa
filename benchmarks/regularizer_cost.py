"""What the smoothness penalties cost: seconds per training step of ResNet-18 on 32 x 32 images, with and without.

    python benchmarks/regularizer_cost.py
    python benchmarks/regularizer_cost.py --stem imagenet

The first is the network that CIFAR-10 is trained with (3 x 3 stem, no pooling, 0.56 G multiply-adds an image), the
second torchvision's as it is (0.04 G): fifteen times less work in a step, the same weights to penalise.

Prints, for each penalty, seconds of one application and its share of a plain step (forward, backward, SGD step), as
applied every step and every few steps (the default of SmoothnessRegularization). Medians; one run measures both.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from lightning_fold.regularizers import Smoothness


def seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    """Median seconds of ``run`` after one that does not count."""
    times = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start) if repeat else None
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stem", choices=["cifar", "imagenet"], default="cifar")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    if arguments.stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    network.to(arguments.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    inputs = torch.randn(arguments.batch, 3, 32, 32, device=arguments.device)
    targets = torch.randint(10, (arguments.batch,), device=arguments.device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()

    plain = seconds(step, arguments.repeats, arguments.device)
    setting = f"{arguments.stem} stem, batch {arguments.batch}, {arguments.threads} threads, {arguments.device}"
    print(f"plain step {plain:.3f} s, {setting}")  # noqa: T201
    names: list[str] = ["first_difference", "second_difference", "group_sparsity", "nuclear_norm"]
    for name in names:
        smoothness = Smoothness({name: 1e-3})

        def apply(smoothness: Smoothness = smoothness) -> None:
            smoothness.add_gradients(network, step=0, epoch=0)

        cost, every = seconds(apply, arguments.repeats, arguments.device), smoothness.every
        shares = f"{cost / plain:6.1%} applied every step, {cost / plain / every:6.1%} every {every}"
        print(f"{name:18s} {cost:.3f} s: {shares}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
