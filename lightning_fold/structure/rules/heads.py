"""Channels cut into the heads of attention, and the code's attributes that repeat the size of a head."""

from collections.abc import Callable
from operator import getitem
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.structure.known import (
    Values,
)
from lightning_fold.structure.labels import Blocks, Labelling, Size
from lightning_fold.structure.operators import compact, family, operands, operator_name
from lightning_fold.structure.rules.contraction import is_contraction
from lightning_fold.structure.trace import Trace, layer_of

# Python attributes that repeat the size of one attention head, and of all.
HEAD_SIZES = ("head_dim", "attention_head_size", "dim_head")
HEAD_TOTALS = ("attn_dim", "all_head_size", "inner_dim")

RESHAPES = ("view", "reshape", "_unsafe_view", "unflatten", "flatten")
# Families that may stand between attention and the contractions around it.
AROUND = {"movement", "positions", "identity", "cast", "pointwise", "product", "layer_norm"}


def around_attention(trace: Trace, known: Values) -> set[Node]:
    """The nodes that only move or scale what attention reads or gives: there, channels may stand in heads."""
    found: set[Node] = set()
    for node in trace.graph.nodes:
        if node.op != "call_function" or family(node) not in ("attention", "matmul"):
            continue
        if family(node) == "attention" or not is_contraction(node, known[operands(node, node.args, node.kwargs)[1]]):
            _spread(node, found, lambda n: list(n.all_input_nodes))
            _spread(node, found, lambda n: list(n.users))
    return found


def _spread(start: Node, found: set[Node], neighbours: Callable[[Node], list[Node]]) -> None:
    open_nodes, seen = neighbours(start), set()
    while open_nodes:
        node = open_nodes.pop()
        if node in seen or node.op != "call_function" or not (node.target is getitem or family(node) in AROUND):
            continue
        seen.add(node)
        open_nodes += neighbours(node)
    found |= seen


def cut_into_heads(run: Labelling, node: Node, result: Tensor, inner: int) -> None:
    """Channels cut into heads: every head keeps equally many, and the code must follow."""
    if operator_name(node) not in RESHAPES:
        return
    compacted = compact(result)
    blocks = compacted.movedim(inner, -1).reshape(-1, compacted.shape[inner])
    run.labels.blocks.append(Blocks((blocks,), layer_of(node), "is cut into heads of equal size", counted=True))
    record_size(run, node, blocks, inner, HEAD_SIZES, total=False)


def record_size(
    run: Labelling, node: Node, labels: Tensor, inner: int, attributes: tuple[str, ...], *, total: bool
) -> None:
    """Record which attribute gives the size that a reshape names; where none does, the size is fixed."""
    if operator_name(node) == "flatten":
        return
    unflattened = operator_name(node) == "unflatten"
    sizes: Any = node.args[2 if unflattened else 1]
    position = inner - _dim_of(node) if unflattened else inner
    if not 0 <= position < len(sizes):
        return
    named = sizes[position]
    if named == -1:
        return
    layer = layer_of(node)
    module = run.trace.modules.get(layer)
    found = {name: named // size for name in attributes if _divides(size := getattr(module, name, None), named)}
    if not found or not run.ask_attributes or isinstance(module, nn.MultiheadAttention):
        run.pin([labels], node, "is cut into heads of a size that the code knows")
        return
    run.labels.sizes += [Size(layer, name, labels, total, share) for name, share in found.items()]


def _dim_of(node: Node) -> int:
    """The dimension that an unflatten cuts."""
    dim: Any = node.args[1]
    return dim % node.all_input_nodes[0].meta["val"].dim()


def _divides(size: Any, named: int) -> bool:
    return isinstance(size, int) and size > 1 and named % size == 0
