"""Which channels layers and norms read: columns with a non-zero weight, and constants."""

import torch
from torch import Tensor

from lightning_fold.structure.constant_values import channel_constants
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction, Norm
from lightning_fold.structure.operators.contractions import contraction_channel, oriented


def used_columns(structure: Structure, contraction: Contraction) -> Tensor:
    """(rows, columns) whether the weight from column to row is non-zero, for every channel the contraction reads."""
    weight = oriented(contraction.node, structure.constants[contraction.weight])
    nonzero = (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0
    if contraction.groups == 1:
        return nonzero.cpu()
    blocks = nonzero.reshape(contraction.groups, -1, weight.shape[1]).cpu()
    return torch.block_diag(*blocks.to(torch.uint8)).bool()


def input_constants(structure: Structure, contraction: Contraction) -> Tensor | None:
    """(columns,) the constant value of each channel that ``contraction`` reads; NaN where it depends on the input."""
    given = channel_constants(structure.constants[contraction.value], contraction_channel(contraction.node))
    return None if given is None else given.cpu()


def norm_constants(structure: Structure, norm: Norm) -> Tensor:
    """(channels,) the constant value of each channel that ``norm`` reads; NaN where it depends on the input."""
    assert norm.channels is not None
    given = channel_constants(structure.constants[norm.node.all_input_nodes[0]], norm.dim)
    if given is None or len(given) != norm.channels.numel():  # or over the channels of each head
        return torch.full((norm.channels.numel(),), torch.nan)
    return given.cpu()


def varying_columns(structure: Structure, contraction: Contraction, out: Tensor) -> Tensor:
    """(groups,) the channels that the rows in ``out`` read and that depend on the input."""
    given = input_constants(structure, contraction)
    varying = torch.ones(1, dtype=torch.bool) if given is None else given.isnan()
    return _columns_read(structure, contraction, out, varying)


def constant_columns(structure: Structure, contraction: Contraction, out: Tensor) -> Tensor:
    """(groups,) the non-zero constant channels that the rows in ``out`` read."""
    given = input_constants(structure, contraction)
    constant = torch.zeros(1, dtype=torch.bool) if given is None else (given != 0) & ~given.isnan()
    return _columns_read(structure, contraction, out, constant)


def _columns_read(structure: Structure, contraction: Contraction, out: Tensor, which: Tensor) -> Tensor:
    reading = torch.zeros(structure.count, dtype=torch.bool)
    if contraction.columns is not None:
        used = used_columns(structure, contraction)
        if contraction.rows is not None:
            used = used & out[structure.group_of[contraction.rows]][:, None]
        reading[structure.group_of[contraction.columns[used.any(0) & which]]] = True
    return reading
