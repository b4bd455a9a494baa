"""factorize on a trained CIFAR-10 ResNet-20 or ResNet-32: accuracy against size, with and without whitening.

    python benchmarks/low_rank_accuracy.py DATA/checkpoints/resnet20-12fca82f.th --data DATA

The checkpoint is one of github.com/akamaster/pytorch_resnet_cifar10. Nothing is trained. Each accuracy is on the
test images, all 10,000 unless fewer are asked for; whitening and BatchNorm re-estimation ("repaired") read training
images only.
"""

import argparse
import re
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

import lightning_fold as lf
from lightning_fold.models import CifarResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 3, 32, 32) and their classes."""
    data = CIFAR10(str(folder), train=train, download=False)
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2) / 255
    normalised = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return normalised, torch.tensor(data.targets)


def accuracy(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of right answers in percent."""
    network.eval()
    with torch.inference_mode():
        right = [int((network(x).argmax(1) == t).sum()) for x, t in zip(inputs.split(500), targets.split(500))]  # noqa: B905
    return 100 * sum(right) / len(targets)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--whiten", type=int, nargs="+", default=[0, 512, 2048], help="training images; 0: none")
    parser.add_argument("--repair", type=int, default=2000, help="training images that estimate BatchNorm again")
    parser.add_argument("--flops", action="store_true", help="shares of the FLOPs, not of the parameters")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = re.search(r"resnet(\d+)", arguments.checkpoint.name)
    assert found is not None, "the depth stands in the name of the checkpoint"
    dense = CifarResNet(depth=int(found[1]))
    state = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    dense.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    inputs, targets = (each[: arguments.images] for each in images(arguments.data, train=False))
    chosen = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))[: max(*arguments.whiten, 2000)]
    training = images(arguments.data, train=True)[0][chosen]
    print(f"dense {accuracy(dense, inputs, targets):.2f} %")  # noqa: T201
    print(f"{'asked':>6s} {'parameters':>10s} {'flops':>6s} {'whitened on':>11s} {'raw':>6s} {'repaired':>8s}")  # noqa: T201
    for keep in arguments.keep:
        for count in arguments.whiten:
            network = deepcopy(dense)
            batches = training[:count].split(128) if count else None
            of = "flops" if arguments.flops else "parameters"
            report = lf.factorize(network, inputs[:1], batches=batches, keep=keep, of=of)
            raw = accuracy(network, inputs, targets)
            lf.repair(network, training[: arguments.repair].split(500))
            assert report.flops_before and report.flops_after
            sizes = (report.parameters_after / report.parameters_before, report.flops_after / report.flops_before)
            print(  # noqa: T201
                f"{keep:6.2f} {sizes[0]:10.3f} {sizes[1]:6.3f} {count:11d} {raw:6.2f} "
                f"{accuracy(network, inputs, targets):8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
