"""BatchNorms right behind a layer: the affine rows that both make, and rescaling both without changing the function."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_fold.structure.contractions import contraction_channel, contraction_groups, oriented
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction
from lightning_fold.structure.operators import (
    argument,
    batch_norm_behind,
    batch_norm_eps,
    family,
    operands,
    operator_name,
)
from lightning_fold.structure.values import Value
from lightning_fold.surgery.transaction import Surgery

_HOMOGENEOUS = {"relu", "leaky_relu", "neg"}
_SUMS = {"add", "sub"}
_LINEAR_FAMILIES = ("pooling", "movement", "positions", "identity", "cat")
_TINY = 1e-30


@dataclass(frozen=True)
class Producer:
    """A layer that writes channels, with the BatchNorm right behind it where there is one.

    ``norm`` holds the names of gamma, beta, running mean and running variance.
    """

    contraction: Contraction
    weight: str
    bias: str | None
    norm: tuple[str, str, str, str] | None
    eps: float

    @property
    def tensors(self) -> tuple[str, ...]:
        """All that writes the channels."""
        return (self.weight, *((self.bias,) if self.bias else ()), *(self.norm or ()))


def find_producers(structure: Structure) -> list[Producer]:
    """The layers whose rows and BatchNorm can be rescaled: each tensor is used once."""
    names = structure.trace.names
    found = []
    for contraction in structure.labels.contractions:
        if contraction.rows is None or contraction.weight not in names:
            continue
        bias = names.get(contraction.bias) if contraction.bias is not None else None
        norm, eps = _norm_behind(structure, contraction.node)
        producer = Producer(contraction, names[contraction.weight], bias, norm, eps)
        if all(structure.uses[name] == 1 for name in producer.tensors) and (
            contraction.bias is None or bias is not None
        ):
            found.append(producer)
    return found


def _norm_behind(structure: Structure, node: Node) -> tuple[tuple[str, str, str, str] | None, float]:
    norm = batch_norm_behind(node)
    if norm is None:
        return None, 0.0
    found = [structure.trace.names.get(tensor) for tensor in norm.args[1:5]]  # pyright: ignore[reportArgumentType]
    if any(name is None for name in found):
        return None, 0.0
    gamma, beta, mean, variance = (str(name) for name in found)
    return (gamma, beta, mean, variance), batch_norm_eps(norm)


def effective_rows(surgery: Surgery, producer: Producer) -> tuple[Tensor, Tensor]:
    """(channels, elements) rows and (channels,) bias of layer and BatchNorm as one affine map, float64."""
    rows = oriented(producer.contraction.node, _double(surgery, producer.weight)).flatten(1)
    bias = _double(surgery, producer.bias) if producer.bias else torch.zeros(len(rows), dtype=torch.float64)
    if producer.norm is None:
        return rows, bias
    gamma, beta, mean, variance = (_double(surgery, name) for name in producer.norm)
    scale = gamma * torch.rsqrt(variance + producer.eps)
    return rows * scale[:, None], (bias - mean) * scale + beta


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

    def apply(self, surgery: Surgery) -> None:
        """Rescale a network: the one it was made for, or a copy with other BatchNorm statistics."""
        for producer, touched, rows, by in self.producers:
            row_dim = 1 - producer.contraction.column_dim
            _multiply(surgery, producer.weight, row_dim, rows)
            if producer.bias:
                _multiply(surgery, producer.bias, 0, rows)
            if producer.norm is not None:
                gamma, beta, mean, variance = producer.norm
                _set(surgery, gamma, lambda t, k=touched: torch.where(k.to(t.device), torch.ones_like(t), t))
                _multiply(surgery, beta, 0, by[0])
                _multiply(surgery, mean, 0, rows)
                _set(surgery, variance, lambda t, b=by[1], e=producer.eps: ((t + e) / b.to(t) - e).clamp_min(0))
        for (name, dim), columns in self.readers.items():
            _multiply(surgery, name, dim, columns)

    def spreads(self) -> list[tuple[Producer, Tensor]]:
        """Each layer with a BatchNorm, and the standard deviation (channels,) of what it now writes; 1 if untouched."""
        found = []
        for producer, touched, rows, by in self.producers:
            if producer.norm is not None:
                variance = (by[1] - producer.eps).clamp_min(0)
                spread = (rows.abs() * variance.sqrt()).clamp_min(producer.eps**0.5)
                found.append((producer, torch.where(touched, spread, 1.0)))
        return found


def widen(surgery: Surgery, producer: Producer, factors: Tensor) -> None:
    """Multiply the standard deviation that a BatchNorm divides by, and its scale, by ``factors``; the function stays.

    A rescaled BatchNorm divides by 1, whatever its input. With the spread expected of that input in the place of the 1,
    estimating the statistics again changes no more than what was not expected.
    """
    assert producer.norm is not None
    gamma, _, _, variance = producer.norm
    _multiply(surgery, gamma, 0, factors)
    growth = factors.square() - 1
    _set(surgery, variance, lambda t, e=producer.eps: (t + growth.to(t) * (t + e)).clamp_min(0))


def rescaling(surgery: Surgery, structure: Structure, merged: Tensor, scales: Tensor, reading: set) -> Rescaling:
    """Bring the ``merged`` channels to the length 1, with the scale of each BatchNorm in its layer's rows.

    So the mean of rows is the mean of what layer and BatchNorm do together, and channels that differ by a positive
    factor are alike.

    Args:
        surgery: the network.
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
            variance = torch.where(touched, _double(surgery, producer.norm[3]) + producer.eps, 1.0)
            scale = _double(surgery, producer.norm[0]) * variance.rsqrt()
            rows = torch.where(touched, scale * inverse, 1.0)
        producers.append((producer, touched, rows, torch.stack([inverse, variance])))
    readers = {}
    for key in reading:
        groups = structure.groups(structure.labels.axes[key]) if key in structure.labels.axes else torch.zeros(0).long()
        columns = torch.where(merged[groups], scales[groups], 1.0)
        if bool((columns != 1).any()):
            readers[key] = columns
    return Rescaling(tuple(producers), readers)


def homogeneous(structure: Structure) -> Tensor:
    """(groups,) whether scaling a channel by a positive factor where it is written scales it where it is read.

    True where nothing but layers, the BatchNorms right behind them, ReLU, sums of such channels, pooling and movement
    meets the channel.
    """
    result = torch.ones(structure.count, dtype=torch.bool)
    producers = {producer.contraction.node: producer for producer in find_producers(structure)}
    rescaled = _rescaled_axes(structure, producers.values())
    for key, axis in structure.labels.axes.items():
        if key not in rescaled:
            result[structure.groups(axis)] = False
    for labels, _ in structure.columns.unsummed:
        result[structure.group_of[labels]] = False
    for node in structure.trace.graph.nodes:
        if node.op == "call_function":
            for labels in _not_scaled(structure, node, producers):
                result[structure.group_of[labels.flatten()]] = False
    return result


def _rescaled_axes(structure: Structure, producers: Iterable[Producer]) -> set[tuple[str, int]]:
    """The dimensions that a :class:`Rescaling` scales: producers' rows, and columns.

    A weight that is called twice has columns to multiply, but no rows to divide: it is of one kind in one dimension.
    """
    rows = {(producer.weight, 1 - producer.contraction.column_dim) for producer in producers}
    rows |= {(name, 0) for producer in producers for name in producer.tensors if name != producer.weight}
    return rows | structure.columns.read


def _not_scaled(structure: Structure, node: Node, producers: dict[Node, Producer]) -> list[Tensor]:
    """The labels of the channels that ``node`` reads and does not hand on scaled as they come."""
    carried = [_carried(value) for source in node.all_input_nodes for value in _parts(structure, source)]
    kept: set[tuple[int, ...]] = set()
    if _scales(node, producers):
        if operator_name(node) in _SUMS:  # what is added to all channels alike is not scaled with any
            kept = set.intersection(*map(set, carried))
        elif family(node) == "contraction" and operands(node, node.args, node.kwargs)[2] is not None:
            carried = [_carried(value) for value in _parts(structure, operands(node, node.args, node.kwargs)[0])]
            kept = {(contraction_channel(node) - node.meta["val"].dim(),)}  # nor is a bias, along other dimensions
        else:
            return []
    return [labels for each in carried for dims, labels in each.items() if dims not in kept]


def _parts(structure: Structure, node: Node) -> list[Value]:
    return [leaf for leaf in tree_leaves(structure.labels.values.get(node)) if isinstance(leaf, Value)]


def _carried(value: Value) -> dict[tuple[int, ...], Tensor]:
    """The labels of ``value`` by the dimensions along which they vary, counted from the last as broadcasting does."""
    rank = len(value.shape)
    over_heads = {tuple(dim - rank for dim in range(rank) if each.shape[dim] > 1): each for each in value.head_labels}
    return {**{(dim - rank,): labels for dim, labels in value.labels.items()}, **over_heads}


def _scales(node: Node, producers: dict[Node, Producer]) -> bool:
    name, kind = operator_name(node), family(node)
    if kind == "batch_norm":
        return node.args[0] in producers and producers[node.args[0]].norm is not None  # pyright: ignore
    if kind == "contraction":
        return contraction_groups(node) == 1
    if kind == "reduction":
        return name in ("mean", "sum", "amax")
    if name in _SUMS:
        return all(isinstance(operand, Node) for operand in node.args[:2])
    if kind == "pad":
        return not argument(node, 2 if name == "constant_pad_nd" else 3, "value", None)
    if kind == "cast":
        return node.meta["val"].is_floating_point()
    return name in _HOMOGENEOUS or kind in _LINEAR_FAMILIES or name == "getitem"


def _double(surgery: Surgery, name: str) -> Tensor:
    return surgery.tensor(name).detach().double().cpu()


def _set(surgery: Surgery, name: str, change) -> None:
    surgery.transform(name, change, moments=lambda moment: moment)


def _multiply(surgery: Surgery, name: str, dim: int, factors: Tensor) -> None:
    def change(tensor: Tensor) -> Tensor:
        view = [1] * tensor.dim()
        view[dim] = -1
        return tensor * factors.to(tensor).reshape(view)

    surgery.transform(name, change, moments=lambda moment: moment)
