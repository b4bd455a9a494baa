"""Which channels can reach the output: the graph run backwards over "some non-zero weight uses it"."""

from collections.abc import Collection
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_fold.structure.channel_reads import constant_columns, norm_constants, varying_columns
from lightning_fold.structure.constant_values import channel_constants, depends
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.labels import HeadUse, Norm, Product
from lightning_fold.structure.operators.nodes import compact, family, feeds_softmax, operator_name, shape_operands
from lightning_fold.structure.values import Value


def live_groups(
    structure: Structure,
    fixed: Collection[Node] = (),
    held: Tensor | None = None,
    needed_at: dict[Node, Tensor] | None = None,
) -> Tensor:
    """(groups,) whether anything that reaches the output reads the group.

    A contraction's column does not read a channel that is a known constant, since the constant moves into the consumer.
    Contractions in ``fixed`` cannot take a constant, so there this holds only for zero. A known constant reads nothing:
    a channel behind a BatchNorm or gate of zero is constant, whatever comes before. A normalisation reads all channels
    that share statistics, but needs known constants only if it is in ``fixed``. Channels that an operator takes and
    does not pass on count as read.

    Args:
        structure: the network.
        fixed: contractions that cannot take a constant in place of a column, and norms that cannot be compensated.
        held: (groups,) channels that are kept although nothing reads them: their values must not change.
        needed_at: filled in place: for each node that reaches the output, (groups,) the channels of its value that are
            read.
    """
    step = _Step(structure, fixed, torch.zeros(structure.count, dtype=torch.bool) if held is None else held)
    carried = {node: _carried(structure, value) for node, value in structure.labels.values.items()}
    alive = {node: _mask(structure, carried[node]) for node in structure.trace.outputs}
    live = torch.zeros(structure.count, dtype=torch.bool)
    for node in reversed(structure.trace.graph.nodes):
        out = alive.pop(node, None)
        if out is None:
            continue
        carries = _mask(structure, carried[node])
        live |= out & carries
        if needed_at is not None:
            needed_at[node] = out
        reads = out & ~_constant_groups(structure, node)
        for source in node.all_input_nodes:
            needed = step.needed(node, source, out, reads, carries)
            if needed is not None:
                needed = needed & _mask(structure, carried[source])
                alive[source] = alive[source] | needed if source in alive else needed
    return live


class _Step:
    """One step of :func:`live_groups`, from a node to its operands.

    Args:
        structure: the network.
        fixed: contractions that cannot take a constant in place of a column, and norms that cannot be compensated.
        held: (groups,) channels that are kept although nothing reads them.
    """

    def __init__(self, structure: Structure, fixed: Collection[Node], held: Tensor) -> None:
        labels = structure.labels
        self.structure, self.fixed, self.held = structure, fixed, held
        self._contractions = {contraction.node: contraction for contraction in labels.contractions}
        self._norms = {norm.node: norm for norm in labels.norms}
        self._products = {product.node: product for product in labels.products}
        self._head_uses: dict[tuple[Node, Node], list[HeadUse]] = {}
        for use in labels.head_uses:
            self._head_uses.setdefault((use.node, use.source), []).append(use)

    def needed(self, node: Node, source: Node, out: Tensor, reads: Tensor, carries: Tensor) -> Tensor | None:
        """(groups,) the channels of ``source`` that ``node`` needs; ``None`` if it needs none.

        Args:
            node: an operator.
            source: one of its operands.
            out: (groups,) the channels of its value that are read.
            reads: (groups,) the same without known constants.
            carries: (groups,) the channels of its value.
        """
        if source in shape_operands(node):
            return None
        passes = node.target is getitem or _selects_heads(self.structure, node)
        needed = reads if passes else reads | ~carries
        if node in self._contractions and source is self._contractions[node].value:
            needed = self._contracted(node, needed, out, reads)
        elif node in self._norms and source is node.all_input_nodes[0]:
            needed = needed | _normalised(self.structure, self._norms[node], reads, node in self.fixed)
        elif family(node) == "bilinear" and source in node.args[:2]:
            needed = needed & ~_unread_factors(self.structure, node, source)
        elif node in self._products and source in node.args[:2]:
            needed = _multiplied(self.structure, self._products[node], needed, reads)
        elif node in self._contractions or family(node) == "bilinear":
            if not depends(self.structure.constants[source]):
                return None  # its channels are the layer's own rows and columns
            needed = torch.ones_like(out)
        for use in self._head_uses.get((node, source), ()):
            needed = _in_live_heads(self.structure, use, needed, reads)
        return needed

    def _contracted(self, node: Node, needed: Tensor, out: Tensor, reads: Tensor) -> Tensor:
        """``needed``, reduced to those columns of a contraction that it reads."""
        contraction, needed = self._contractions[node], needed.clone()
        if contraction.columns is not None:
            needed[self.structure.group_of[contraction.columns].unique()] = False
        needed |= varying_columns(self.structure, contraction, reads)
        if node in self.fixed:
            needed |= constant_columns(self.structure, contraction, out | self.held)
        return needed


def _normalised(structure: Structure, norm: Norm, out: Tensor, fixed: bool) -> Tensor:
    """(groups,) the channels that enter the statistics of the channels in ``out``."""
    if norm.channels is None:
        return torch.ones_like(out)
    blocks = structure.group_of[norm.channels]
    read = out[blocks].any(1, keepdim=True).expand_as(blocks)
    if not fixed:
        given = norm_constants(structure, norm).reshape(blocks.shape)
        read = read & ((given != 0) if family(norm.node) == "global_response_norm" else given.isnan())
    return _mask(structure, blocks[read])


def _in_live_heads(structure: Structure, use: HeadUse, needed: Tensor, out: Tensor) -> Tensor:
    """``needed`` without the channels that only unread heads take."""
    alive = out[structure.group_of[use.given]].any(1)
    taken = structure.group_of[use.taken]
    needed = needed.clone()
    needed[taken[~alive]] = False
    needed[taken[alive]] = True
    return needed


def _multiplied(structure: Structure, product: Product, needed: Tensor, out: Tensor) -> Tensor:
    """``needed`` without channels that add nothing to a product, or the same number to a whole row before a softmax."""
    node, labels = product.node, product.channels
    operands: Any = node.args[:2]
    left, right = (structure.constants[source] for source in operands)
    attends = operator_name(node) == "scaled_dot_product_attention"
    right = right if attends else right.transpose(-1, -2)
    unused = _everywhere(compact(left) == 0, labels) | _everywhere(compact(right) == 0, labels)
    if attends or feeds_softmax(node):
        unused |= _everywhere(compact(right) == compact(right).narrow(-2, 0, 1), labels)
    if product.given is not None:
        alive = out[structure.group_of[product.given]].any(1)
        each = (*labels.shape[:-1], 1)
        unused |= ~(alive.reshape(each) if len(alive) == torch.Size(each).numel() else alive.any())
    groups = structure.group_of[labels]
    read = needed | _mask(structure, groups[~unused])
    read[groups[unused]] = False
    return read | _mask(structure, groups[~unused])


def _unread_factors(structure: Structure, node: Node, source: Node) -> Tensor:
    """(groups,) the channels of ``source`` that are zero or that a bilinear layer multiplies only by zeros."""
    matrix: Any = node.args[2]
    weight = structure.constants[matrix]
    last = source.meta["val"].dim() - 1
    value = structure.labels.values[source]
    if depends(weight) or last not in value.labels:
        return torch.zeros(structure.count, dtype=torch.bool)
    sides = [side for side in (0, 1) if node.args[side] is source]
    used = torch.stack([(weight != 0).movedim(1 + side, 0).flatten(1).any(1) for side in sides]).any(0).cpu()
    given = channel_constants(structure.constants[source], last)
    used = used if given is None else used & (given.cpu() != 0)
    groups = structure.group_of[value.labels[last]]
    return _mask(structure, groups[~used]) & ~_mask(structure, groups[used])


def _selects_heads(structure: Structure, node: Node) -> bool:
    """Whether ``node`` picks some of the blocks of its channels; the others are read elsewhere or not at all."""
    if family(node) != "positions":
        return False
    picked, source = (structure.labels.values.get(each) for each in (node, node.all_input_nodes[0]))
    if not isinstance(picked, Value) or not isinstance(source, Value) or source.labels:
        return False
    return bool(source.head_labels) and len(picked.head_labels) + len(picked.labels) == len(source.head_labels)


def _everywhere(condition: Tensor, labels: Tensor) -> Tensor:
    """Whether ``condition`` holds for all elements of each label, in the shape of ``labels``."""
    dims = [dim for dim in range(condition.dim()) if labels.shape[dim] == 1 and condition.shape[dim] > 1]
    for dim in dims:
        condition = condition.all(dim, keepdim=True)
    for dim, (size, heads) in enumerate(zip(condition.shape, labels.shape, strict=True)):
        if 1 < size < heads:  # several query heads read one key head
            condition = condition.repeat_interleave(heads // size, dim)
    return condition.expand(labels.shape).cpu()


def _constant_groups(structure: Structure, node: Node) -> Tensor:
    """(groups,) the channels of ``node`` that are known constants."""
    value = structure.labels.values[node]
    if not isinstance(value, Value) or value.head_labels or len(value.labels) != 1:
        return torch.zeros(structure.count, dtype=torch.bool)
    ((dim, labels),) = value.labels.items()
    given, groups = channel_constants(structure.constants[node], dim), structure.group_of[labels]
    constant = _mask(structure, groups if given is not None else groups[:0])
    if given is not None:
        constant[groups[given.isnan().cpu()]] = False
    return constant


def _carried(structure: Structure, value: object) -> Tensor:
    leaves = tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Value))
    values = [leaf for leaf in leaves if isinstance(leaf, Value)]
    labels = [labels.flatten() for leaf in values for labels in (*leaf.labels.values(), *leaf.head_labels)]
    return structure.group_of[torch.cat(labels)].unique() if labels else torch.zeros(0, dtype=torch.int64)


def _mask(structure: Structure, groups: Tensor) -> Tensor:
    mask = torch.zeros(structure.count, dtype=torch.bool)
    mask[groups] = True
    return mask
