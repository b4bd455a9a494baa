"""Batch-, Instance-, Group-, Layer- and RMSNorm, and global response normalisation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.structure.constant_values import UNKNOWN, along, channel_constants, depends, unknown
from lightning_fold.structure.graph.trace import layer_of
from lightning_fold.structure.labels import Blocks, GlobalResponseNorm, LabelRecorder, Norm
from lightning_fold.structure.operators.nodes import (
    WRITTEN_NORMS,
    argument,
    batch_norm_eps,
    norm_affine,
    norm_offset,
    norm_tensors,
    normalised_dims,
    operator_name,
    restride,
)
from lightning_fold.structure.rules.heads import by_head, fix_heads, inner_dim
from lightning_fold.structure.rules.rule import Rule
from lightning_fold.structure.values import Value, argument_value, blank, labels_in


def _label_batch_norm(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value: Value = args[0]
    for other in args[1:5]:
        if isinstance(other, Value):
            run.tie_or_pin(value.labels.get(1), other.labels.get(0), node, "is normalised with a fixed input")
    if _own_statistics(node):
        run.pin([f for d, f in value.labels.items() if d != 1], node, "is normalised over")
        value = Value(value.shape, {d: f for d, f in value.labels.items() if d == 1})
    rest = blank(node)
    return [value, *rest[1:]] if isinstance(rest, (list, tuple)) else value


def _own_statistics(node: Node) -> bool:
    """Whether a Batch- or InstanceNorm computes its statistics from its input."""
    return operator_name(node) in ("batch_norm", "instance_norm") and bool(node.args[5])


def _known_batch_norm(node: Node, args: tuple, kwargs: dict) -> Tensor:
    value, gamma, beta, mean, variance = args[:5]
    given = channel_constants(value, 1)
    native = operator_name(node) != "batch_norm"
    if given is None or mean is None or (args[5] and not native):  # args[5]: normalises with the batch's statistics
        return _native(native, unknown(node))
    scaled = (given - mean) * torch.rsqrt(variance + batch_norm_eps(node))
    return _native(native, along(_affine(scaled, gamma, beta), 1, value.shape))


def _native(native: bool, value: Any) -> Any:
    return (value[0] if isinstance(value, (list, tuple)) else value, UNKNOWN, UNKNOWN) if native else value


def _affine(scaled: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """The output of a normalisation, given ``scaled``; where gamma is zero, ``scaled`` does not matter."""
    if gamma is not None:
        scaled = torch.where(gamma == 0, 0, scaled * gamma)
    return scaled if beta is None else scaled + beta


def _known_instance_norm(node: Node, args: tuple, kwargs: dict) -> Any:
    value, gamma, beta, mean, variance, own_statistics = args[:6]
    given = channel_constants(value, 1)
    if given is None:
        return unknown(node)
    scaled = (
        torch.where(given.isnan(), given, 0.0) if own_statistics else (given - mean) * torch.rsqrt(variance + args[7])
    )
    return along(_affine(scaled, gamma, beta), 1, value.shape)


def _label_group_norm(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value: Value = args[0]
    channels, layer = value.labels.get(1), layer_of(node)
    run.pin([f for d, f in value.labels.items() if d > 1], node, "is normalised over")
    for tensor in norm_affine(node):
        if tensor is not None:
            other = argument_value(node, args, kwargs, tensor).labels.get(0)
            run.tie_or_pin(channels, other, node, "is normalised with a fixed input")
    if channels is not None:
        blocks = channels.reshape(int(args[1]), -1)
        run.labels.norms.append(Norm(node, blocks, 1))
        if isinstance(run.trace.modules.get(layer), nn.GroupNorm):
            run.labels.blocks.append(
                Blocks((blocks,), layer, "shares its statistics with others", shared_statistics=True)
            )
        else:
            run.pin([channels], node, "is normalised in a number of groups that the code fixes")
    return Value(value.shape, {1: channels} if channels is not None else {})


def _known_group_norm(node: Node, args: tuple, kwargs: dict) -> Any:
    # A norm group of constants is constant: its mean and variance do not depend on the input.
    value, groups = args[:2]
    given = channel_constants(value, 1)
    if given is None:
        return unknown(node)
    blocks = given.reshape(groups, -1)
    centred = blocks - blocks.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    scaled = (centred * torch.rsqrt(variance + argument(node, 4, "eps", 1e-5))).flatten()
    gamma, beta = (args[i] if len(args) > i else kwargs.get(key) for i, key in ((2, "weight"), (3, "bias")))
    return along(_affine(scaled, gamma, beta), 1, value.shape)


def _label_layer_norm(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    value: Value = args[0]
    dims = normalised_dims(node)
    if value.head_labels:
        return _normalised_heads(run, node, args, kwargs)
    for tensor in norm_tensors(node):
        for dim, labels in argument_value(node, args, kwargs, tensor).labels.items():
            run.tie_or_pin(value.labels.get(dims[dim]), labels, node, "is normalised with a fixed input")
    inside = [labels for dim, labels in value.labels.items() if dim in dims]
    alone = len(dims) == 1 and len(inside) == 1
    run.labels.norms.append(Norm(node, inside[0][None] if alone else None, dims[-1]))
    if not alone or not _follows(run, node):
        run.pin(inside, node, "is normalised over a size that the code fixes")
    return Value(value.shape, value.labels)


def _normalised_heads(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    """A norm over the channels of each head: a head is removed as a whole, and the norm keeps its size."""
    value: Value = args[0]
    over_heads, reason = value.head_labels[0], "is normalised with the other channels of its head"
    inner = inner_dim(over_heads)
    if inner in value.labels or len(value.head_labels) > 1 or normalised_dims(node) != (inner,):
        (value,), _ = run.without_heads((value,), {})
        return _label_layer_norm(run, node, (value, *args[1:]), kwargs)
    affine = [argument_value(node, args, kwargs, tensor) for tensor in norm_affine(node) if tensor is not None]
    run.pin(labels_in(affine), node, reason)
    fix_heads(run, node, over_heads, reason)
    run.labels.norms.append(Norm(node, by_head(over_heads), inner))
    return value


def _follows(run: LabelRecorder, node: Node) -> bool:
    """Whether the width of a LayerNorm or RMSNorm follows the weight of its module."""
    module = run.trace.modules.get(layer_of(node))
    weight, owner = norm_affine(node)[0], layer_of(node)
    named = run.trace.names.get(weight, "") if weight is not None else ""
    written = operator_name(node) in WRITTEN_NORMS
    return named.rpartition(".")[0] == owner and (written or (bool(named) and hasattr(module, "normalized_shape")))


def _known_layer_norm(node: Node, args: tuple, kwargs: dict) -> Any:
    """The output is beta where gamma or, in an RMSNorm, the input is zero; all else depends on the statistics."""
    shape = node.meta["val"].shape
    given = zip((*node.args, *node.kwargs.values()), (*args, *kwargs.values()), strict=True)
    values = {id(argument): value for argument, value in given}
    gamma, beta = (None if tensor is None else values[id(tensor)] for tensor in norm_affine(node))
    if gamma is None or depends(gamma):
        return unknown(node)
    dims, fixed = normalised_dims(node), gamma + norm_offset(node) == 0
    if operator_name(node).endswith("rms_norm") and len(dims) == 1:
        given = channel_constants(args[0], dims[0])
        fixed = fixed if given is None else fixed | (given == 0)
    known = torch.where(fixed, torch.zeros_like(gamma) if beta is None else beta, torch.nan)
    return restride(known.reshape(*known.shape, *[1] * (len(shape) - 1 - dims[-1])).expand(shape))


def _label_response_norm(run: LabelRecorder, node: Node, args: tuple, kwargs: dict) -> Any:
    """Channels divided by their mean: zeros can be removed if a weight and a number compensate the smaller count."""
    value: Value = args[0]
    channels = value.labels.get(args[1] % len(value.shape))
    run.labels.norms.append(Norm(node, None if channels is None else channels[None], args[1]))
    if channels is None:
        return Value(value.shape, value.labels)
    weight: Any = node.args[3]
    added, scale, layer = args[2], run.trace.names.get(weight), layer_of(node)
    attributes = vars(run.trace.modules[layer]) if layer in run.trace.modules else {}
    held = [name for name, number in attributes.items() if type(number) is float and number == added]
    if scale is not None and len(held) == 1 and run.ask_attributes:
        run.labels.global_response_norms.append(GlobalResponseNorm(channels, scale, layer, held[0], added))
    else:
        run.pin([channels], node, "is divided by a mean over a number of channels that the code fixes")
    return Value(value.shape, value.labels)


def _known_response_norm(node: Node, args: tuple, kwargs: dict) -> Any:
    """Zero stays zero for any mean."""
    return restride(torch.where(args[0] == 0, 0.0, torch.nan).to(args[0].dtype))


RULES = {
    "batch_norm": Rule(_label_batch_norm, _known_batch_norm),
    "instance_norm": Rule(_label_batch_norm, _known_instance_norm),
    "group_norm": Rule(_label_group_norm, _known_group_norm),
    "global_response_norm": Rule(_label_response_norm, _known_response_norm),
    "layer_norm": Rule(_label_layer_norm, _known_layer_norm, reads_heads=True),
}
