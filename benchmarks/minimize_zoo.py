"""minimize over timm and torchvision networks: factor, error, time, and what was kept and why.

    python benchmarks/minimize_zoo.py vit_tiny_patch16_224:32 convnext_atto:64 torchvision/resnet18:64

A name is that of a timm network, or ``torchvision/<name>``; the image size follows a colon. Weights are random;
LayerScale and weights that start at zero are drawn anew, BatchNorm statistics are estimated after masking. The error is
the largest difference of an output in float64, relative to the spread of the outputs over inputs.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import lightning_fold as lf

FEW = 4
PATTERNS = ("rows", "columns", "scattered")
NETWORKS = [
    *("vit_tiny_patch16_224:32", "convnext_atto:64", "mixer_s32_224:64", "swin_tiny_patch4_window7_224:64"),
    *("deit_tiny_patch16_224:32", "resmlp_12_224:64", "gmixer_12_224:64", "poolformer_s12:64", "test_vit:32"),
    *("maxvit_rmlp_pico_rw_256:64", "efficientnet_b0:64", "mobilenetv3_small_100:64", "regnetx_002:64"),
    *("densenet121:64", "ghostnet_100:64", "res2net50_26w_4s:64", "seresnet18:64", "inception_v3:96"),
    *("torchvision/resnet18:64", "torchvision/mobilenet_v2:64", "torchvision/shufflenet_v2_x0_5:64"),
    *("torchvision/mnasnet0_5:64", "torchvision/squeezenet1_1:64", "torchvision/vgg11_bn:32"),
]


def create(name: str, size: int, *, seed: int = 0) -> nn.Module:
    """The network ``name`` in float64, with outputs that depend on every layer."""
    torch.manual_seed(seed)
    if name.startswith("torchvision/"):
        model = torchvision.models.get_model(name.removeprefix("torchvision/"), weights=None)
    else:
        sized = any(key in name for key in ("vit", "deit", "mixer", "mlp", "swin"))
        options = {"img_size": size} if sized else {}
        model = timm.create_model(name, **options, **({"window_size": 2} if "swin" in name else {}))
    model = model.double()
    for key, parameter in model.named_parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif parameter.dim() == 1 and float(parameter.detach().abs().max()) < 1e-3:
            nn.init.normal_(parameter, std=0.5) if key.endswith("bias") else nn.init.uniform_(parameter, 0.3, 1.0)
    return model


def mask(model: nn.Module, pattern: str, share: float, *, seed: int = 3) -> None:
    """Zero rows, columns or single weights of all layers but the last; biases and shifts stay.

    Few columns (colours, depthwise convolutions) stay as they are, so that the output still depends on the input.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, _ConvNd))][:-1]
    for weight in weights:
        shape = [1] * weight.dim() if pattern != "scattered" else list(weight.shape)
        if pattern != "scattered":
            shape[int(pattern == "columns")] = -1
            keep = torch.rand(weight.shape[int(pattern == "columns")], generator=generator) >= share
            keep |= torch.tensor(len(keep) <= FEW)
        else:
            keep = torch.rand(shape, generator=generator) >= share
            keep |= torch.tensor(weight.shape[1] <= FEW)
        with torch.no_grad():
            weight *= keep.reshape(shape)


def estimate_statistics(model: nn.Module, inputs: Tensor) -> None:
    """Estimate BatchNorm statistics: with those from before masking, outputs hardly depend on the input."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(inputs) if norms else None
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def error_of(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the spread over inputs."""
    spread = (expected - expected.mean(0)).abs().max().clamp_min(1e-300)
    return float((found - expected).abs().max() / spread)


def measure(name: str, size: int, pattern: str, share: float) -> dict:
    """One network, one pattern."""
    model = create(name, size).eval()
    mask(model, pattern, share)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64) for n in (8, 2, 3)]
    estimate_statistics(model, images[0])
    dense = deepcopy(model)
    start = time.perf_counter()
    try:
        report = lf.minimize(model, images[1])
    except (lf.RewriteError, ValueError) as error:
        return {"failed": str(error)}
    seconds = time.perf_counter() - start
    with torch.no_grad():
        error = error_of(model(images[2]), dense(images[2]))
    kept = Counter[str]()
    for each in report.kept:
        kept[" ".join(each.reason.split(" ")[-6:])] += each.channels
    return {"factor": report.factor, "error": error, "seconds": seconds, "kept": kept}


def rows(networks: list[str], patterns: list[str], share: float, scattered: float) -> Iterator[str]:
    """The lines of the table."""
    yield f"{'network':34s} {'pattern':10s} {'factor':>7s} {'error':>8s} {'seconds':>8s}  kept"
    for network in networks:
        name, _, size = network.partition(":")
        for pattern in patterns:
            result = measure(name, int(size or 64), pattern, scattered if pattern == "scattered" else share)
            head = f"{name:34s} {pattern:10s}"
            if "failed" in result:
                yield f"{head} {result['failed'][:120]}"
                continue
            kept = "; ".join(f"{count} {reason}" for reason, count in result["kept"].most_common(3))
            yield f"{head} {result['factor']:7.2f} {result['error']:8.1e} {result['seconds']:8.1f}  {kept}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="timm names or torchvision/<name>, then :<size>")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--share", type=float, default=0.5, help="share of rows or columns that are zero")
    parser.add_argument("--scattered", type=float, default=0.97, help="share of zeros in the scattered pattern")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for line in rows(arguments.networks, arguments.patterns, arguments.share, arguments.scattered):
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
