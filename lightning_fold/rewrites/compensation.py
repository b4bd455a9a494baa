"""Norms over channels of which constant ones leave, or which are merged: a compensated norm takes their place."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.layers import CompensatedLayerNorm, CompensatedNorm, CompensatedRMSNorm
from lightning_fold.rewrites.merging import targets
from lightning_fold.rewrites.removal import Removal
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import Norm
from lightning_fold.structure.liveness import norm_constants
from lightning_fold.structure.operators import argument, family, norm_affine, norm_counts, operator_name
from lightning_fold.structure.trace import layer_of
from lightning_fold.surgery import Surgery


def compensable(structure: Structure, norm: Norm) -> bool:
    """Whether a compensated norm can stand for ``norm``: a module of its own, called once."""
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
    written = isinstance(module, CompensatedNorm) or operator_name(norm.node) == "written_rms_norm"
    known = written or hasattr(module, "normalized_shape")
    return known and owned == {path} and len(calls) == 1 and _module_dim(structure, norm) is not None


def compensate(surgery: Surgery, structure: Structure, norm: Norm, removal: Removal) -> None:
    """Put a compensated norm in the place of ``norm`` where channels have left it."""
    assert norm.channels is not None
    leaving = removal.removed[structure.group_of[norm.channels[0]]]
    if not bool(leaving.any()):
        return
    path = layer_of(norm.node)
    new = _compensated(structure, norm, surgery.model.get_submodule(path))
    constants = norm_constants(structure, norm).to(new.weight.detach())
    index = torch.nonzero(leaving).flatten().repeat_interleave(_counts(structure, norm)[leaving])
    new.absorb(constants[index.to(constants.device)].nan_to_num())  # varying only where nobody reads the norm
    surgery.replace_module(path, new)


def weigh(surgery: Surgery, structure: Structure, norm: Norm, cluster_of: Tensor, removal: Removal) -> None:
    """Let a norm over channels that were merged and removed count each one left as often as there were.

    Where each stands for equally many a plain norm is right as it is.
    """
    assert norm.channels is not None
    groups = structure.group_of[norm.channels[0]]
    merged = torch.bincount(targets(groups, cluster_of), minlength=len(groups))[~removal.removed[groups]]
    path = layer_of(norm.node)
    old = surgery.model.get_submodule(path)
    if bool((merged == merged[0]).all()) and not isinstance(old, CompensatedNorm):
        return
    new = _compensated(structure, norm, old)
    new.counts = new.counts * merged.to(new.counts)
    surgery.replace_module(path, new)


def _counts(structure: Structure, norm: Norm) -> Tensor:
    """(channels,) how many channels each one stood for when the network was read."""
    assert norm.channels is not None
    counts = norm_counts(norm.node)
    if counts is not None:
        return structure.trace.tensors[counts].cpu().long()
    return torch.ones(len(norm.channels[0]), dtype=torch.long)


def _compensated(structure: Structure, norm: Norm, old: nn.Module) -> CompensatedNorm:
    """What computes the same as the module ``old``, with the same parameters."""
    weight: Any = old.weight
    if isinstance(old, CompensatedNorm):
        options = {"eps": old.eps, "dim": old.dim, "bias": old.bias is not None, "precision": old.precision}
        new = type(old)(len(weight), old.removed, **options).to(weight)
        new.constant, new.spread, new.counts = old.constant.clone(), old.spread.clone(), old.counts.clone()
    else:
        root = operator_name(norm.node).endswith("rms_norm")
        kind = CompensatedRMSNorm if root else CompensatedLayerNorm
        eps = argument(norm.node, 3, "eps", None) if root else argument(norm.node, 4, "eps", 1e-5)
        eps = torch.finfo(weight.dtype).eps if eps is None else eps
        dim = _module_dim(structure, norm)
        assert dim is not None
        precision = (
            argument(norm.node, 4, "precision", None) if operator_name(norm.node) == "written_rms_norm" else None
        )
        options = {"eps": eps, "dim": dim, "bias": getattr(old, "bias", None) is not None, "precision": precision}
        new = kind(len(weight), **options).to(weight)
    new.weight = weight
    if new.bias is not None:
        new.bias = old.bias  # pyright: ignore[reportAttributeAccessIssue]
    return new.train(old.training)


def _module_dim(structure: Structure, norm: Norm) -> int | None:
    """The dimension that holds the channels where they enter the module that runs ``norm``."""
    assert norm.channels is not None
    source: Node = norm.node.all_input_nodes[0]
    while source.op == "call_function" and layer_of(source) == layer_of(norm.node):
        source = source.all_input_nodes[0]
    fields = structure.labels.values[source].fields
    groups = structure.group_of[norm.channels[0]]
    found = [dim for dim, labels in fields.items() if torch.equal(structure.group_of[labels], groups)]
    if len(found) != 1:
        return None
    return -1 if found[0] == source.meta["val"].dim() - 1 else found[0]
