"""Layers that write channels, together with the BatchNorm right after, as one affine map."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction
from lightning_fold.structure.operators.contractions import oriented
from lightning_fold.structure.operators.nodes import batch_norm_behind, batch_norm_eps
from lightning_fold.surgery.editor import Editor


@dataclass(frozen=True)
class Producer:
    """A layer that writes channels, with the BatchNorm right after it if there is one.

    ``norm`` holds the names of gamma, beta, running mean and running variance.
    """

    contraction: Contraction
    weight: str
    bias: str | None
    norm: tuple[str, str, str, str] | None
    eps: float

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors that write the channels."""
        return (self.weight, *((self.bias,) if self.bias else ()), *(self.norm or ()))


def find_producers(structure: Structure) -> list[Producer]:
    """The layers whose rows and BatchNorm can be rescaled because each tensor is used only once."""
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


def effective_rows(editor: Editor, producer: Producer) -> tuple[Tensor, Tensor]:
    """Rows (channels, elements) and bias (channels,) of layer and BatchNorm as one affine map, float64."""
    rows = oriented(producer.contraction.node, double(editor, producer.weight)).flatten(1)
    bias = double(editor, producer.bias) if producer.bias else torch.zeros(len(rows), dtype=torch.float64)
    if producer.norm is None:
        return rows, bias
    gamma, beta, mean, variance = (double(editor, name) for name in producer.norm)
    scale = gamma * torch.rsqrt(variance + producer.eps)
    return rows * scale[:, None], (bias - mean) * scale + beta


def double(editor: Editor, name: str) -> Tensor:
    """The tensor ``name`` as float64 on the CPU."""
    return editor.tensor(name).detach().double().cpu()
