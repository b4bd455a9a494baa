"""Rescaling layers and the BatchNorms right behind them without changing the function."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_fold.rewrites.channels.producers import Producer, double, find_producers
from lightning_fold.structure.groups import Structure
from lightning_fold.surgery.editor import Editor


@dataclass(frozen=True)
class Rescaling:
    """Channels scaled where they are written, and back where they are read; the function stays.

    Attributes:
        producers: for each layer which channels are touched, what its rows are multiplied with, and two rows of numbers
            for its BatchNorm: what the shift is multiplied with, and the variance divided by. Its scale becomes 1.
        readers: name and dimension of each tensor that reads -> what its columns are multiplied with.
    """

    producers: tuple[tuple[Producer, Tensor, Tensor, Tensor], ...]
    readers: dict[tuple[str, int], Tensor]

    def apply(self, editor: Editor) -> None:
        """Rescale a network: the one it was made for, or a copy with other BatchNorm statistics."""
        for producer, touched, rows, by in self.producers:
            row_dim = 1 - producer.contraction.column_dim
            editor.scale(producer.weight, row_dim, rows)
            if producer.bias:
                editor.scale(producer.bias, 0, rows)
            if producer.norm is not None:
                gamma, beta, mean, variance = producer.norm
                one, old, eps = editor.tensor(gamma), editor.tensor(variance), producer.eps
                editor.set(gamma, torch.where(touched.to(one.device), torch.ones_like(one), one))
                editor.scale(beta, 0, by[0])
                editor.scale(mean, 0, rows)
                editor.set(variance, ((old + eps) / by[1].to(old) - eps).clamp_min(0))
        for (name, dim), columns in self.readers.items():
            editor.scale(name, dim, columns)

    def spreads(self) -> list[tuple[Producer, Tensor]]:
        """Each layer with a BatchNorm, and the standard deviation (channels,) of what it now writes; 1 if untouched."""
        found = []
        for producer, touched, rows, by in self.producers:
            if producer.norm is not None:
                variance = (by[1] - producer.eps).clamp_min(0)
                spread = (rows.abs() * variance.sqrt()).clamp_min(producer.eps**0.5)
                found.append((producer, torch.where(touched, spread, 1.0)))
        return found


def widen(editor: Editor, producer: Producer, factors: Tensor) -> None:
    """Multiply the standard deviation that a BatchNorm divides by, and its scale, by ``factors``; the function stays.

    A rescaled BatchNorm divides by 1, whatever its input. With the spread expected of that input in the place of the 1,
    estimating the statistics again changes no more than what was not expected.
    """
    assert producer.norm is not None
    gamma, _, _, variance = producer.norm
    editor.scale(gamma, 0, factors)
    old, growth = editor.tensor(variance), factors.square() - 1
    editor.set(variance, (old + growth.to(old) * (old + producer.eps)).clamp_min(0))


def rescaling(editor: Editor, structure: Structure, merged: Tensor, scales: Tensor, reading: set) -> Rescaling:
    """Bring the ``merged`` channels to the length 1, with the scale of each BatchNorm in its layer's rows.

    So the mean of rows is the mean of what layer and BatchNorm do together, and channels that differ by a positive
    factor are alike.

    Args:
        editor: of the network.
        structure: what was read from it.
        merged: (groups,) whether a channel is merged with others; the rest stay as they are.
        scales: (groups,) what each channel is divided by; 1 where it must not be scaled.
        reading: the dimensions that are a consumer's columns.
    """
    producers = []
    for producer in find_producers(structure):
        assert producer.contraction.rows is not None
        groups = structure.group_of[producer.contraction.rows]
        touched = merged[groups]
        if not bool(touched.any()):
            continue
        inverse = torch.where(touched, 1 / scales[groups], 1.0)
        rows, variance = inverse, torch.ones_like(inverse)
        if producer.norm is not None:
            variance = torch.where(touched, double(editor, producer.norm[3]) + producer.eps, 1.0)
            scale = double(editor, producer.norm[0]) * variance.rsqrt()
            rows = torch.where(touched, scale * inverse, 1.0)
        producers.append((producer, touched, rows, torch.stack([inverse, variance])))
    readers = {}
    for key in reading:
        groups = structure.groups(structure.labels.axes[key]) if key in structure.labels.axes else torch.zeros(0).long()
        columns = torch.where(merged[groups], scales[groups], 1.0)
        if bool((columns != 1).any()):
            readers[key] = columns
    return Rescaling(tuple(producers), readers)
