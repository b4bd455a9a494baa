"""Constants of removed channels: the tensor that takes them, or the channel that carries them through zero padding."""

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from lightning_fold.rewrites.channels.bias_sinks import BiasSink, find_bias_sink
from lightning_fold.rewrites.channels.removal import Removal
from lightning_fold.structure.channel_reads import input_constants, used_columns
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Contraction
from lightning_fold.structure.operators.contractions import is_padded, oriented
from lightning_fold.surgery.transaction import Surgery


def find_sink(surgery: Surgery, structure: Structure, contraction: Contraction) -> BiasSink | None:
    """The tensor that takes the constants of columns removed from ``contraction``; ``None`` if there is none."""
    names, node = structure.trace.names, contraction.node
    weight = names.get(contraction.weight)
    if is_padded(node):
        single = weight is not None and structure.uses[weight] == 1 and _shares_channels(structure, contraction)
        return BiasSink(weight, 1) if weight is not None and single else None
    sink = find_bias_sink(structure, contraction)
    if sink is not None:
        return sink
    if contraction.bias is not None or weight is None or structure.uses[weight] != 1:
        return None
    path = weight.rpartition(".")[0]
    owner = surgery.model.get_submodule(path)
    if not isinstance(owner, (nn.Linear, _ConvNd)) or owner.bias is not None or layer_of(node) != path:
        return None  # no code would read the new bias
    return BiasSink(f"{path}.bias".removeprefix("."), 1, created_beside=weight)


def _shares_channels(structure: Structure, contraction: Contraction) -> bool:
    """Whether one input channel can stand in for another, or is alone in its group and is removed with its row."""
    return contraction.groups == 1 or _is_depthwise(structure, contraction)


def _is_depthwise(structure: Structure, contraction: Contraction) -> bool:
    return contraction.groups > 1 and structure.constants[contraction.weight].shape[1] == 1


def choose_carriers(structure: Structure, dead: Tensor, live: Tensor) -> dict[Node, int]:
    """Choose the groups that carry constants through zero padding, ``{convolution: group}``; take them out of ``dead``.

    A constant next to padded zeros is not constant near the border, but all constants have the same spatial pattern
    there: one of them, scaled, can represent all constants that the same convolutions read.
    """
    readers: dict[int, set[Node]] = {}
    strength: dict[int, float] = {}
    for contraction in structure.labels.contractions:
        if not is_padded(contraction.node) or contraction.columns is None:
            continue
        given = input_constants(structure, contraction)
        columns = _moving_columns(structure, contraction, given, dead, live)
        groups = structure.group_of[contraction.columns[columns]].tolist()
        for group, constant in zip(groups, given[columns].tolist() if given is not None else [], strict=True):
            readers.setdefault(group, set()).add(contraction.node)
            strength[group] = min(abs(constant), strength.get(group, torch.inf))
    carriers: dict[Node, int] = {}
    for group in sorted(readers, key=lambda group: (-len(readers[group]), -strength[group])):
        missing = [node for node in readers[group] if node not in carriers]
        if missing:
            dead[group] = False
            carriers.update(dict.fromkeys(missing, group))
    return carriers


def _moving_columns(
    structure: Structure, contraction: Contraction, given: Tensor | None, dead: Tensor, live: Tensor
) -> Tensor:
    """Columns of removed groups whose non-zero constant a live row reads."""
    if given is None or contraction.columns is None:
        return torch.zeros(0, dtype=torch.int64)
    used = used_columns(structure, contraction)
    if contraction.rows is not None:
        used = used & live[structure.group_of[contraction.rows]][:, None]
    leaving = dead[structure.group_of[contraction.columns]]
    return torch.nonzero(leaving & used.any(0) & (given != 0) & ~given.isnan()).flatten()


def move_constants(
    surgery: Surgery,
    structure: Structure,
    contraction: Contraction,
    sink: BiasSink,
    removal: Removal,
    carriers: dict[Node, int],
) -> None:
    """Add the constants of the removed columns to the tensor that takes them."""
    given = input_constants(structure, contraction)
    if given is None or contraction.columns is None or _is_depthwise(structure, contraction):
        return
    leaving = removal.removed[structure.group_of[contraction.columns]]
    columns = torch.nonzero(leaving & (given != 0) & ~given.isnan()).flatten()
    if not len(columns):
        return
    weight = oriented(contraction.node, structure.constants[contraction.weight])
    if is_padded(contraction.node):
        if contraction.node in carriers:
            carrier = _column(structure, contraction, carriers[contraction.node])
            _load_carrier(surgery, sink.tensor, contraction, columns, carrier, given)
        return
    matrix = _dense(weight, contraction.groups)[:, columns].double()
    constant = sink.sign * (matrix @ given[columns].to(matrix)).to(weight)
    if not bool(constant.any()):
        return
    if sink.created_beside is not None:
        rows = contraction.rows
        staying = slice(None) if rows is None else ~removal.removed[structure.group_of[rows]].to(constant.device)
        surgery.create(sink.tensor, constant[staying], sink.created_beside)
    else:
        surgery.add(sink.tensor, constant)


def _column(structure: Structure, contraction: Contraction, group: int) -> int:
    assert contraction.columns is not None
    return int(torch.nonzero(structure.group_of[contraction.columns] == group)[0])


def _load_carrier(
    surgery: Surgery, name: str, contraction: Contraction, columns: Tensor, carrier: int, given: Tensor
) -> None:
    """Add the weights of ``columns`` to those of the channel ``carrier``, scaled to the constant of ``carrier``."""
    scale, loaded = given[columns] / given[carrier], surgery.tensor(name).detach().clone()
    view = (1, -1) + (1,) * (loaded.dim() - 2)
    rows = oriented(contraction.node, loaded)
    rows[:, carrier] += (rows[:, columns.to(loaded.device)] * scale.to(loaded).reshape(view)).sum(1)
    surgery.set(name, loaded)


def _dense(weight: Tensor, groups: int) -> Tensor:
    """(rows, channels): the weight summed over its window, block-diagonal for a grouped convolution."""
    matrix = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    return matrix if groups == 1 else torch.block_diag(*matrix.reshape(groups, -1, matrix.shape[1]))
