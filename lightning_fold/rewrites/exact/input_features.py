"""Drop input features that no weight reads, using an explicit selection layer."""

import torch
from torch import nn
from torch.fx import Node

from lightning_fold.layers import SelectFeatures
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.operators.nodes import family
from lightning_fold.surgery.transaction import Surgery


def select_read_features(surgery: Surgery, structure: Structure) -> None:
    """Put a :class:`SelectFeatures` in front of each Linear that reads a network input but not all of its features.

    If a layer already has one in front of it, that one is shortened.
    """
    for contraction in structure.labels.contractions:
        name = structure.trace.names.get(contraction.weight, "")
        path, _, leaf = name.rpartition(".")
        if not path or leaf != "weight" or type(surgery.model.get_submodule(path)) is not nn.Linear:
            continue  # the network itself cannot be replaced, and other weights have no layer of their own
        if not _reads_input(structure, contraction.value):
            continue
        read = torch.nonzero((surgery.tensor(name) != 0).any(0)).flatten()
        if 0 < len(read) < surgery.tensor(name).shape[1]:
            _select(surgery, path, name, read)


def _reads_input(structure: Structure, node: Node) -> bool:
    """Whether ``node`` is an input of the network, after data movement only."""
    while node.op == "call_function" and family(node) in ("movement", "identity", "positions", "pad"):
        node = node.all_input_nodes[0]
    return node.op == "placeholder" and node not in structure.trace.tensors


def _select(surgery: Surgery, path: str, name: str, read: torch.Tensor) -> None:
    surgery.select(name, 1, read)
    parent, _, leaf = path.rpartition(".")
    before = surgery.model.get_submodule(parent)
    if isinstance(before, nn.Sequential) and leaf == "1" and isinstance(before[0], SelectFeatures):
        surgery.select(f"{parent}.0.index".removeprefix("."), 0, read)
    else:
        linear = surgery.model.get_submodule(path)
        surgery.replace_module(path, nn.Sequential(SelectFeatures(read), linear))
