"""What only a GPU can show, in under ten minutes: correctness there, ResNet-18 on CIFAR-10, latency.

    python benchmarks/gpu.py --data DATA --output runs/gpu
    python benchmarks/gpu.py --tiny                          # everything in small, on the CPU

DATA holds CIFAR-10's python batches (``cifar-10-batches-py``). Each part writes its rows to ``results.json`` and
``results.md`` in the output folder as soon as they are known, and one that fails costs its own row. Networks come as
``smooth.pt.part-1`` and so on: ``cat smooth.pt.part-* > smooth.pt``. benchmarks/README.md says how to run it on a
machine without a network.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

import torch  # noqa: E402

from benchmarks.gpu_parts import correctness, latency, plan, resnet, rewriting  # noqa: E402
from benchmarks.gpu_parts.results import Results  # noqa: E402

PARTS = ("correctness", "resnet", "latency")


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; the number of rows that did not come out as they must."""
    options = parse(arguments)
    clock = plan.Deadline.after(options.seconds)
    device = torch.device("cpu" if options.tiny else "cuda")
    results = Results(options.output, about(options, device))
    setting = latency.TINY if options.tiny else latency.FULL
    recipe = resnet.TINY if options.tiny else resnet.FULL
    with tempfile.TemporaryDirectory() as folder, rewriting.pool() as workers:
        work = Path(folder)
        if "correctness" in options.parts:
            share = plan.CORRECTNESS_TINY if options.tiny else plan.CORRECTNESS
            limit = plan.Deadline.after(share * options.seconds)
            with results.guard("correctness"):
                correctness.measure(results, work, limit, cuda=not options.tiny)
        pending = latency.prepare(setting, work, workers) if "latency" in options.parts else {}
        study = None
        if "resnet" in options.parts:
            end = clock.earlier(plan.AFTER_TRAINING * options.seconds)
            with results.guard(resnet.PART):
                study = resnet.measure(results, recipe, options.data, device, work, workers, end)
        with results.guard(latency.PART):
            last = clock.earlier(plan.LAST_ROWS * options.seconds)
            latency.measure(results, setting, device, pending, last)
        if study is not None:
            with results.guard(resnet.PART, "last rewrites"):
                study.collect(clock)
    sys.stdout.write(f"{len(results.rows)} rows, not as they must be: {', '.join(results.failed) or 'none'}\n")
    return len(results.failed)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds cifar-10-batches-py")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--tiny", action="store_true", help="small networks and few images, on the CPU")
    parser.add_argument("--seconds", type=float, default=None, help="limit for everything: 570, or 400 if tiny")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny runs everything in small on the CPU")
    options.seconds = options.seconds or (400.0 if options.tiny else 570.0)
    return options


def about(options: argparse.Namespace, device: torch.device) -> dict[str, str | float]:
    """What holds for all rows."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    command = " ".join(["python benchmarks/gpu.py", *sys.argv[1:]])
    return {"command": command, "device": name, "torch": torch.__version__, "time limit in seconds": options.seconds}


if __name__ == "__main__":
    sys.exit(min(main(), 1))
