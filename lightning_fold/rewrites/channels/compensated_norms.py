"""Norms over channels that lose constant channels or whose channels are merged: a compensated norm replaces them."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_fold.layers import CompensatedLayerNorm, CompensatedNorm, CompensatedRMSNorm
from lightning_fold.rewrites.channels.merge import targets
from lightning_fold.rewrites.channels.removal import Removal
from lightning_fold.structure.channel_reads import norm_constants
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import GlobalResponseNorm, Norm
from lightning_fold.structure.operators.nodes import (
    WRITTEN_NORMS,
    family,
    norm_affine,
    norm_counts,
    norm_eps,
    norm_offset,
    norm_precision,
    operator_name,
)
from lightning_fold.surgery.editor import NetworkEditor


def compensable(structure: Structure, norm: Norm) -> bool:
    """Whether a compensated norm can replace ``norm``, that is, whether it is a module of its own and called once."""
    path, (weight, bias) = layer_of(norm.node), norm_affine(norm.node)
    if (
        family(norm.node) != "layer_norm"
        or norm.channels is None
        or len(norm.channels) > 1
        or not path
        or weight is None
    ):
        return False
    names, module = structure.trace.names, structure.trace.modules.get(path)
    owned = {names.get(tensor, "").rpartition(".")[0] for tensor in (weight, bias) if tensor is not None}
    calls = [other for other in structure.labels.norms if layer_of(other.node) == path]
    known = operator_name(norm.node) in WRITTEN_NORMS or hasattr(module, "normalized_shape")
    return known and owned == {path} and len(calls) == 1 and _module_dim(structure, norm) is not None


def compensate(editor: NetworkEditor, structure: Structure, norm: Norm, removal: Removal) -> None:
    """Replace ``norm`` by a compensated norm if it loses channels."""
    assert norm.channels is not None
    leaving = removal.removed[structure.group_of[norm.channels[0]]]
    if not bool(leaving.any()):
        return
    path = layer_of(norm.node)
    new = _compensated(editor, structure, norm)
    constants = norm_constants(structure, norm).to(new.constant)
    index = torch.nonzero(leaving).flatten().repeat_interleave(_counts(structure, norm)[leaving])
    new.absorb(constants[index.to(constants.device)].nan_to_num())  # NaN (not constant) only if nothing reads the norm
    editor.replace_module(path, new)


def compensate_response_norm(
    editor: NetworkEditor, structure: Structure, norm: GlobalResponseNorm, removal: Removal
) -> None:
    """Compensate for zero channels that leave ``norm``: the mean over K instead of C channels is C / K times as large.

    So the number added to it, and the tensor that scales the quotient, are multiplied by C / K as well.
    """
    leaving = removal.removed[structure.group_of[norm.channels]]
    grown = len(leaving) / max(int((~leaving).sum()), 1)
    if grown > 1:
        editor.set(norm.scale, editor.tensor(norm.scale) * grown)
        editor.set_attribute(norm.layer, norm.attribute, norm.added * grown)


def weigh(editor: NetworkEditor, structure: Structure, norm: Norm, cluster_of: Tensor, removal: Removal) -> None:
    """Make a norm over merged or removed channels count each remaining channel once per channel that it represents.

    If all represent equally many, a plain norm is already right.
    """
    assert norm.channels is not None
    groups = structure.group_of[norm.channels[0]]
    merged = torch.bincount(targets(groups, cluster_of), minlength=len(groups))[~removal.removed[groups]]
    path = layer_of(norm.node)
    if bool((merged == merged[0]).all()) and not isinstance(editor.model.get_submodule(path), CompensatedNorm):
        return
    new = _compensated(editor, structure, norm)
    new.counts = new.counts * merged.to(new.counts)
    editor.replace_module(path, new)


def _counts(structure: Structure, norm: Norm) -> Tensor:
    """(channels,) the number of channels that each one represented when the network was read."""
    assert norm.channels is not None
    counts = norm_counts(norm.node)
    if counts is not None:
        return structure.trace.tensors[counts].cpu().long()
    return torch.ones(len(norm.channels[0]), dtype=torch.long)


def _compensated(editor: NetworkEditor, structure: Structure, norm: Norm) -> CompensatedNorm:
    """A compensated norm equivalent to the module of ``norm``, with the same parameters."""
    node, path = norm.node, layer_of(norm.node)
    if offset := norm_offset(node):
        name = structure.trace.names[norm_affine(node)[0]]
        editor.set(name, editor.tensor(name) + offset)
    old = editor.model.get_submodule(path)
    weight: Any = editor.tensor(f"{path}.{_leaf(structure, norm, 0)}")
    bias: Any = None if norm_affine(node)[1] is None else editor.tensor(f"{path}.{_leaf(structure, norm, 1)}")
    if isinstance(old, CompensatedNorm):
        options = {"eps": old.eps, "dim": old.dim, "bias": bias is not None, "precision": old.precision}
        new = type(old)(len(weight), old.removed, **options).to(weight)
        new.constant, new.spread, new.counts = old.constant.clone(), old.spread.clone(), old.counts.clone()
    else:
        kind = CompensatedRMSNorm if operator_name(node).endswith("rms_norm") else CompensatedLayerNorm
        eps, dim = norm_eps(node), _module_dim(structure, norm)
        assert dim is not None
        options = {"dim": dim, "bias": bias is not None, "precision": norm_precision(node)}
        smallest = torch.finfo(torch.promote_types(weight.dtype, torch.float32)).eps  # torch computes in this type
        new = kind(len(weight), eps=smallest if eps is None else eps, **options).to(weight)
    new.weight, new.bias = weight, bias
    return new.train(old.training)


def _leaf(structure: Structure, norm: Norm, which: int) -> str:
    """The attribute name of the weight (0) or bias (1) in the module of ``norm``."""
    return structure.trace.names[norm_affine(norm.node)[which]].rpartition(".")[2]


def _module_dim(structure: Structure, norm: Norm) -> int | None:
    """The channel dimension of the input of the module that runs ``norm``; ``None`` if it is not unique."""
    assert norm.channels is not None
    source: Node = norm.node.all_input_nodes[0]
    while source.op == "call_function" and layer_of(source) == layer_of(norm.node):
        source = source.all_input_nodes[0]
    fields = structure.labels.values[source].labels
    groups = structure.group_of[norm.channels[0]]
    found = [dim for dim, labels in fields.items() if torch.equal(structure.group_of[labels], groups)]
    if len(found) != 1:
        return None
    return -1 if found[0] == source.meta["val"].dim() - 1 else found[0]
