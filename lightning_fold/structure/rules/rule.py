"""The rule of one family of operators."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from lightning_fold.structure.labels import LabelRecorder


@dataclass(frozen=True)
class Rule:
    """How one family of operators runs on symbolic values.

    Attributes:
        labels: ``(run, node, args, kwargs)`` -> the labels of the result; records ties and pins with ``run``.
        constants: ``(node, args, kwargs)`` -> the result, NaN where it depends on the input; ``None``: it always does.
        reads_heads: whether ``labels`` understands channels in heads; otherwise the channels of all heads are tied.
    """

    labels: Callable[[LabelRecorder, Node, tuple, dict], Any]
    constants: Callable[[Node, tuple, dict], Any] | None = None
    reads_heads: bool = False
