"""rebuild: give a newly built network the structure of a compressed one, so that its state dict can be loaded."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_fold.class_paths import names_class
from lightning_fold.errors import ArgumentError
from lightning_fold.layers import CompensatedLayerNorm, CompensatedNorm, CompensatedRMSNorm, Constant, SelectFeatures
from lightning_fold.storage.describe import StructureDict, describe, type_name
from lightning_fold.surgery.origins import created_in, replaced_by
from lightning_fold.surgery.transaction import Surgery

# Modules that a rewrite can put into a network; :func:`_build` builds each from its described attributes.
_BUILT: tuple[type[nn.Module], ...] = (
    *(nn.Sequential, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(SelectFeatures, Constant, CompensatedLayerNorm, CompensatedRMSNorm),
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def rebuild(model: nn.Module, structure: StructureDict, *, optimizers: Iterable[Optimizer] = ()) -> None:
    """Give ``model``, in place, the module types, tensor shapes and size attributes of ``structure``.

    Tensors whose shape changes are zero afterwards: load the state dict next.

    Args:
        model: the network as its class builds it.
        structure: the result of :func:`describe` for the compressed network, or for ``model`` before it was rewritten.
        optimizers: optimizers of the network; optimizer state of tensors whose shape changes is zero afterwards.

    Raises:
        ArgumentError: ``structure`` belongs to another network; ``model`` is not changed.
    """
    with Surgery(model, optimizers) as surgery:
        for path in structure:
            _rebuild_module(surgery, path, structure)
        _check_same(model, structure)


def _rebuild_module(surgery: Surgery, path: str, structure: StructureDict) -> None:
    module, entry = _find(surgery.model, path), structure[path]
    if module is None or not _is_kind(module, entry["type"]):
        before = None if module is None else replaced_by(module)
        if before is None or not names_class(entry["type"], type(before)):
            _replace(surgery, path, structure)
            return
        module = _put_back(surgery, path, before)
    for name in created_in(module) - set(entry["shapes"]):
        surgery.uncreate(f"{path}.{name}".removeprefix("."))
    for name, shape in entry["shapes"].items():
        dotted = f"{path}.{name}".removeprefix(".")
        if not isinstance(getattr(module, name, None), Tensor):
            _create(surgery, module, path, name, shape)
        elif list(getattr(module, name).shape) != shape:
            surgery.resize(dotted, shape)
    for name, value in _attributes(module, entry).items():
        old = getattr(module, name, None)
        setattr(module, name, tuple(value) if isinstance(value, list) and isinstance(old, tuple) else value)


def _is_kind(module: nn.Module, kind: str) -> bool:
    """Whether ``module`` has the type ``kind``, or both are BatchNorms, which sync_batchnorm=True swaps."""
    both = type(module) in _BATCH_NORMS and any(names_class(kind, norm) for norm in _BATCH_NORMS)
    return both or names_class(kind, type(module))


def _attributes(module: nn.Module, entry: dict[str, Any]) -> dict[str, Any]:
    found = entry["attributes"]
    return found if names_class(entry["type"], type(module)) else {"num_features": found["num_features"]}


def _create(surgery: Surgery, module: nn.Module, path: str, name: str, shape: list[int]) -> None:
    neighbour = next(iter(module._parameters))
    like = surgery.tensor(f"{path}.{neighbour}".removeprefix("."))
    surgery.create(f"{path}.{name}".removeprefix("."), like.new_zeros(shape), f"{path}.{neighbour}".removeprefix("."))


def _put_back(surgery: Surgery, path: str, before: nn.Module) -> nn.Module:
    """Put the original module back at ``path``, with all tensors zero except non-persistent buffers."""
    like = next(p for p in surgery.model.parameters() if p.is_floating_point())
    module = deepcopy(before).to_empty(device=like.device)
    tensors = (*before.parameters(), *before.buffers())
    if like.dtype not in {tensor.dtype for tensor in tensors}:  # the network has been cast since
        module = module.to(like.dtype)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.detach().zero_()
    for name, buffer in before.named_buffers():
        if not buffer.is_meta:
            module.get_buffer(name).copy_(buffer)
    surgery.replace_module(path, module)
    return module


def _replace(surgery: Surgery, path: str, structure: StructureDict) -> None:
    """Build the module at ``path`` with all its submodules, and put it in place of the current one."""
    kind = _built(structure[path])
    if kind is None or not path:
        raise ArgumentError(
            f"rebuild: the structure has a {structure[path]['type']} at {path or 'its top'!r}, which "
            f"{type_name(surgery.model)} does not have; expected the structure of the same network. "
            "Build the network with the class and arguments it was trained with."
        )
    parent, _, leaf = path.rpartition(".")
    with torch.random.fork_rng(devices=[]):  # new layers draw random weights that are not used
        new = _build(kind, structure[path])
        for inner, entry in structure.items():
            if inner.startswith(f"{path}.") and (part := _built(entry)) is not None:
                owner, _, name = inner.removeprefix(f"{path}.").rpartition(".")
                new.get_submodule(owner).add_module(name, _build(part, entry))
    like = next((p for p in surgery.model.parameters() if p.is_floating_point()), None)
    new = new if like is None else new.to(device=like.device, dtype=like.dtype)
    if _find(surgery.model, path) is None:
        surgery.model.get_submodule(parent).add_module(leaf, new)
    else:
        surgery.replace_module(path, new)


def _built(entry: dict[str, Any]) -> type[nn.Module] | None:
    """The class of a module that a rewrite may have put into the network; ``None`` for other modules."""
    return next((kind for kind in _BUILT if names_class(entry["type"], kind)), None)


def _build(kind: type[nn.Module], entry: dict[str, Any]) -> nn.Module:
    sizes = entry["attributes"]
    has_bias = "bias" in entry["shapes"]
    if kind in (nn.Sequential, nn.Identity):
        return kind()
    if kind is SelectFeatures:
        return SelectFeatures(entry["shapes"]["index"][0])
    if kind is Constant:
        return Constant(entry["shapes"]["value"][0], dim=sizes["dim"])
    if issubclass(kind, CompensatedNorm):
        width = entry["shapes"]["weight"][0]
        options = {name: sizes[name] for name in ("eps", "dim", "precision") if name in sizes}
        return kind(width, sizes["removed"], **options, bias=has_bias)
    if kind is nn.Linear:
        return nn.Linear(sizes["in_features"], sizes["out_features"], bias=has_bias)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    arguments = {name: tuple(v) if isinstance(v := sizes[name], list) else v for name in names}
    return kind(**arguments, bias=has_bias)


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _check_same(model: nn.Module, structure: StructureDict) -> None:
    found = describe(model)
    extra = sorted(set(found) - set(structure))
    for path in [*extra, *structure]:
        expected = structure.get(path, {"shapes": {}})["shapes"]
        if path in extra or found[path]["shapes"] != expected:
            raise ArgumentError(
                f"rebuild: {type_name(model)} has {found[path]['shapes']} at {path!r}, the structure has {expected}; "
                "expected the structure of the same network. Build the network with the class and arguments it was "
                "trained with."
            )
