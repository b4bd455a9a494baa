"""lightning-fold beside other tools: every cell of the README's table is tried here.

    python -m venv tools && tools/bin/pip install -e '.[test]' torch-pruning==1.6.1 torch-simplify==1.1.4
    tools/bin/python -m benchmarks.other_tools --output docs/results/other_tools.csv

``--rows`` and ``--tools`` choose. What a tool raises is its result. Torch-Pruning has no function that removes zeros:
its dependency graph is asked to remove the channels that only zero filters write. simplify is a tool for inference.
Masks are those of torch.nn.utils.prune, in training those of Lightning's ModelPruning, which is made of them.
"""

import argparse
import csv
import logging
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.tool_training import file_without_code, optimizer_state, resumes, trains_on
from benchmarks.tool_trials import FOLD, GRAPH, MASKS, SIMPLIFY, exact, halve, halving_time

NETWORKS = {
    "ResNet-18": "torchvision/resnet18:64",
    "MobileNetV2": "torchvision/mobilenet_v2:64",
    "ViT-B/16": "torchvision/vit_b_16:32",
    "Swin-T": "torchvision/swin_t:64",
}
COLUMNS = [FOLD, GRAPH, SIMPLIFY, MASKS]
ROWS: dict[str, Callable[[str], str]] = {
    **{
        f"zero filters, {title}": lambda tool, name=name: exact(tool, name, norms=False)
        for title, name in NETWORKS.items()
    },
    **{
        f"zero filters and norms, {title}": lambda tool, name=NETWORKS[title]: exact(tool, name, norms=True)
        for title in ("ResNet-18", "MobileNetV2")
    },
    "half of the parameters, not trained on": halve,
    "CPU time to halve ResNet-18": halving_time,
    "trains on after a rewrite in a callback": trains_on,
    "optimizer state after it": optimizer_state,
    "run resumes after it": resumes,
    "file read with weights_only=True": file_without_code,
}


def tried(row: str, tool: str, limit: int) -> dict[str, str]:
    """One cell; a tool that needs more than ``limit`` seconds is stopped."""
    torch.set_default_dtype(torch.float64)  # simplify creates biases in the default type
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(limit)
    try:
        result = ROWS[row](tool)
    except TimeoutError:
        result = f"not finished in {limit} s"
    except Exception as failure:  # noqa: BLE001  (whatever another tool raises is its result)
        result = f"fails: {type(failure).__name__}: {_text(failure)}"
    finally:
        signal.alarm(0)
    return {"row": row, "tool": tool, "result": result}


def _text(failure: Exception) -> str:
    words = " ".join(str(failure).split())
    return "".join(filter(str.isprintable, words))[:90]


def _stop(number: int, frame: object) -> None:
    raise TimeoutError


def main() -> None:
    """Try every cell, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--tools", nargs="+", choices=COLUMNS, default=COLUMNS)
    parser.add_argument("--limit", type=int, default=300, help="seconds for one cell")
    parser.add_argument("--output", type=Path, default=Path("other_tools.csv"))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with arguments.output.open("w", newline="") as file:
        table = csv.DictWriter(file, ["row", "tool", "result"], lineterminator="\n")
        table.writeheader()
        for row in arguments.rows:
            for tool in arguments.tools:
                cell = tried(row, tool, arguments.limit)
                table.writerow(cell)
                file.flush()
                print(*cell.values(), sep=" | ", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
