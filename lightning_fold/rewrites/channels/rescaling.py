"""Rescaling layers and the BatchNorms right after them without changing the function."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_fold.rewrites.channels.producers import Producer, double, find_producers
from lightning_fold.structure.groups import Structure
from lightning_fold.surgery.editor import Editor


@dataclass(frozen=True)
class Rescaling:
    """Channels scaled where they are written, and scaled back where they are read; the function does not change.

    Attributes:
        producers: for each layer, which channels are rescaled, the factors of its rows, and (2, channels) numbers for
            its BatchNorm: the factors of its shift and the divisors of its variance. Its scale becomes 1.
        readers: name and dimension of each reading tensor -> the factors of its columns.
    """

    producers: tuple[tuple[Producer, Tensor, Tensor, Tensor], ...]
    readers: dict[tuple[str, int], Tensor]

    def apply(self, editor: Editor) -> None:
        """Rescale the network that was read, or a copy of it with other BatchNorm statistics."""
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
        """Each layer with a BatchNorm, and the (channels,) standard deviation of its new output; 1 if unchanged."""
        found = []
        for producer, touched, rows, by in self.producers:
            if producer.norm is not None:
                variance = (by[1] - producer.eps).clamp_min(0)
                spread = (rows.abs() * variance.sqrt()).clamp_min(producer.eps**0.5)
                found.append((producer, torch.where(touched, spread, 1.0)))
        return found


def widen(editor: Editor, producer: Producer, factors: Tensor) -> None:
    """Multiply a BatchNorm's running standard deviation and its scale by ``factors``; the function does not change.

    A rescaled BatchNorm divides by 1, whatever the spread of its input. With the expected spread instead of 1,
    re-estimating the statistics only corrects the difference between expected and actual spread.
    """
    assert producer.norm is not None
    gamma, _, _, variance = producer.norm
    editor.scale(gamma, 0, factors)
    old, growth = editor.tensor(variance), factors.square() - 1
    editor.set(variance, (old + growth.to(old) * (old + producer.eps)).clamp_min(0))


def rescaling(editor: Editor, structure: Structure, merged: Tensor, scales: Tensor, reading: set) -> Rescaling:
    """Scale the ``merged`` channels to length 1, and move the scale of each BatchNorm into the rows of its layer.

    The mean of rows is then the mean of layer and BatchNorm together, and channels that differ by a positive factor
    become identical.

    Args:
        editor: editor of the network.
        structure: the structure of the network.
        merged: (groups,) whether a channel is merged with others; other channels are not rescaled.
        scales: (groups,) the divisor of each channel; 1 if it must not be scaled.
        reading: the (name, dimension) pairs that are columns of consumers.
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
