"""minimize beside published tools on the same zeros: relative output error, factor and seconds of each.

    pip install torch-pruning torch-simplify
    python -m benchmarks.published_tools torchvision/resnet18:64

80 % of all filters are zero (fewer where the output would no longer depend on the input), biases and BatchNorm shifts
are not, and BatchNorm statistics are estimated after masking. The error is the largest difference of an output in
float64, relative to the spread of the outputs over inputs. simplify runs with its default settings; Torch-Pruning
removes every channel of its dependency graph whose filters are all zero.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import lightning_fold as lf
from benchmarks.networks import build, error_of

SHARES = (0.8, 0.5, 0.3)
NETWORKS = [
    *(
        "torchvision/resnet18:64",
        "torchvision/resnet50:64",
        "torchvision/resnext50_32x4d:64",
        "torchvision/vgg11_bn:32",
    ),
    *("torchvision/densenet121:64", "torchvision/mobilenet_v2:64", "torchvision/mobilenet_v3_small:64"),
    *("torchvision/mnasnet0_5:64", "torchvision/shufflenet_v2_x0_5:64", "torchvision/squeezenet1_1:64"),
    *("torchvision/efficientnet_b0:64", "torchvision/regnet_y_400mf:64", "torchvision/convnext_tiny:64"),
    *("torchvision/vit_b_32:64", "torchvision/swin_t:64"),
]


def minimize(model: nn.Module, images: Tensor) -> nn.Module:
    """This project."""
    lf.minimize(model, images)
    return model


def simplify(model: nn.Module, images: Tensor) -> nn.Module:
    """EIDOSLAB's simplify."""
    return import_module("simplify").simplify(model, images[:1])


def torch_pruning(model: nn.Module, images: Tensor) -> nn.Module:
    """Torch-Pruning: the groups of its dependency graph, without the channels that only zero filters write."""
    tool: Any = import_module("torch_pruning")
    graph = tool.DependencyGraph().build_dependency(model, example_inputs=images)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for group in list(graph.get_all_groups(ignored_layers=layers[-1:], root_module_types=[nn.Conv2d, nn.Linear])):
        root = group[0].dep
        zero = torch.ones(root.target.module.weight.shape[0], dtype=torch.bool)
        for item in group:
            layer = item.dep.target.module
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and graph.is_out_channel_pruning_fn(item.dep.handler):
                empty = (layer.weight[item.idxs].flatten(1) == 0).all(1)
                zero[torch.as_tensor(item.root_idxs)[~empty]] = False
        indices = torch.nonzero(zero).flatten().tolist()[: len(zero) - 1]
        if indices and graph.check_pruning_group(
            found := graph.get_pruning_group(root.target.module, root.handler, indices)
        ):
            found.prune()
    return model


TOOLS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "lightning-fold": minimize,
    "simplify": simplify,
    "torch-pruning": torch_pruning,
}


def rows(networks: list[str], tools: list[str]) -> Iterator[str]:
    """The lines of the table."""
    yield f"{'network':34s} {'zeros':>5s} {'tool':15s} {'error':>9s} {'factor':>7s} {'seconds':>8s}"
    for network in networks:
        case = build(network, "rows", shares=SHARES)
        for name in tools:
            yield f"{network:34s} {case.share:5.2f} {name:15s} {_measure(TOOLS[name], case.model, case.images(4))}"


def _measure(tool: Callable[[nn.Module, Tensor], nn.Module], dense: nn.Module, images: Tensor) -> str:
    model = deepcopy(dense)
    start = time.perf_counter()
    try:
        model = tool(model, images)
        seconds = time.perf_counter() - start
        error = error_of(model.eval(), dense, images)
    except ImportError as missing:
        return f"not installed: {missing.name}"
    except Exception as failure:  # noqa: BLE001  (whatever another tool raises is its result)
        return f"fails: {type(failure).__name__}: {str(failure)[:70]}"
    return f"{error:9.1e} {lf.count_parameters(dense) / lf.count_parameters(model):7.2f} {seconds:8.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="timm names or torchvision/<name>, then :<size>")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_default_dtype(torch.float64)  # simplify creates biases in the default type
    for line in rows(arguments.networks, arguments.tools):
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
