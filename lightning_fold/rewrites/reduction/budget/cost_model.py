"""The cost of a network, parameters or FLOPs, as a function of the sizes of its widths."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.complexity import count_flops, count_parameters
from lightning_fold.inputs import Inputs, batch_size, first_examples
from lightning_fold.rewrites.channels.widths import PrunableGroup, find_bundles
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.operators.nodes import operands, operator_name
from lightning_fold.structure.values import Value

_PRODUCTS = ("matmul", "mm", "bmm", "baddbmm", "scaled_dot_product_attention")


@dataclass(frozen=True)
class Cost:
    """The cost of a parameter or product at full size, and the groups along each of its channel dimensions.

    The cost is proportional to the number of remaining channels along each of them.
    """

    full: float
    dims: tuple[Tensor, ...]


class CostModel:
    """Parameters or FLOPs of a network as a function of how many channels each width keeps.

    Args:
        structure: the structure of the network.
        widths: its widths.
        costs: the costs of its parameters or products.
        total: the total cost at full size, counted separately.
    """

    def __init__(self, structure: Structure, widths: list[PrunableGroup], costs: list[Cost], total: int) -> None:
        self.widths, self.total, self._costs = widths, total, costs
        self.bundles = find_bundles(structure, widths)
        width_of = torch.full((structure.count,), -1)
        for i, width in enumerate(widths):
            width_of[width.group.ids] = i
        # for each cost and dimension: the number of channels, of channels in no width, and of channels in each width
        self._counts: list[list[tuple[int, int, Counter[int]]]] = []
        for cost in costs:
            counters = [Counter(width_of[groups].tolist()) for groups in cost.dims]
            self._counts.append([(c.total(), c.pop(-1, 0), c) for c in counters])
        self._touched = [
            [number for number, dims in enumerate(self._counts) if any(i in counter for _, _, counter in dims)]
            for i in range(len(widths))
        ]

    def saved(self, bundle: list[int], kept: list[int], step: int) -> float:
        """The saving when the widths of ``bundle`` lose ``step`` more channels in each block."""
        less = [size - step * (i in bundle) for i, size in enumerate(kept)]
        numbers = {number for i in bundle for number in self._touched[i]}
        return sum(self._cost(number, kept) - self._cost(number, less) for number in numbers)

    def cost(self, kept: list[int]) -> float:
        """The total cost."""
        full = [width.size for width in self.widths]
        changed = {number for numbers in self._touched for number in numbers}
        return self.total - sum(self._cost(number, full) - self._cost(number, kept) for number in changed)

    def _cost(self, number: int, kept: list[int]) -> float:
        price = self._costs[number].full
        for total, fixed, counter in self._counts[number]:
            left = sum(
                count / width.group.size * sum(width.kept_in(block, kept[i]) for block in width.blocks)
                for i, count in counter.items()
                for width in (self.widths[i],)
            )
            price *= (fixed + left) / total
        return price


def cost_model(
    model: nn.Module, example_inputs: Inputs, structure: Structure, widths: list[PrunableGroup], *, flops: bool
) -> CostModel:
    """The cost model of ``model``: parameters, or FLOPs for as many examples as its graph was traced with."""
    sizes = {name: float(parameter.numel()) for name, parameter in model.named_parameters()}
    dims = _dims(structure, {name: parameter.shape for name, parameter in model.named_parameters()})
    if not flops:
        costs = [Cost(size, tuple(dims[name])) for name, size in sizes.items()]
        return CostModel(structure, widths, costs, count_parameters(model))
    prices = _flops_per_weight(structure)
    costs = [Cost(prices[name] * size, tuple(dims[name])) for name, size in sizes.items() if name in prices]
    examples = _traced(structure)
    inputs = first_examples(example_inputs, examples)
    return CostModel(structure, widths, costs + _product_costs(structure), count_flops(model, inputs))


def _dims(structure: Structure, shapes: dict[str, torch.Size]) -> dict[str, list[Tensor]]:
    """For each parameter, the groups along each of its channel dimensions."""
    dims: dict[str, list[Tensor]] = {name: [] for name in shapes}
    grouped = {structure.trace.names.get(c.weight, ""): c for c in structure.labels.contractions if c.groups > 1}
    for (name, dim), axis in structure.labels.axes.items():
        if name in dims and not (dim == 1 and name in grouped):
            dims[name].append(structure.groups(axis))
    for name, contraction in grouped.items():
        if name in dims and contraction.columns is not None and shapes[name][1] > 1:
            dims[name].append(structure.group_of[contraction.columns])
    return dims


def _flops_per_weight(structure: Structure) -> dict[str, int]:
    """2 FLOPs per position at which a weight is used: output positions, or input positions if it is transposed.

    As in the total, operators that run only in training cost nothing.
    """
    prices: Counter[str] = Counter()
    for contraction in structure.labels.contractions:
        name = structure.trace.names.get(contraction.weight)
        if name is not None and contraction.node in structure.trace.evaluated:
            places = contraction.value if contraction.column_dim == 0 else contraction.node
            channels = contraction.weight.meta["val"].shape[0]  # channels of ``places``, over all groups
            prices[name] += 2 * (places.meta["val"].numel() // channels)
    return dict(prices)


def _product_costs(structure: Structure) -> list[Cost]:
    """Costs of products of two values, such as queries and keys, or attention scores and values."""
    summed = {product.node: product.channels for product in structure.labels.products}
    weights = {contraction.node for contraction in structure.labels.contractions}
    found = []
    for node in structure.trace.graph.nodes:
        if node not in structure.trace.evaluated or node in weights:
            continue
        if node.op == "call_function" and operator_name(node) in _PRODUCTS:
            first, second = (operand.meta["val"] for operand in operands(node, node.args, node.kwargs)[:2])
            made = _channels(structure, node)
            if operator_name(node) == "scaled_dot_product_attention":
                scores = 2.0 * first[..., 0].numel() * second.shape[-2]
                found.append(Cost(scores * first.shape[-1], _groups(structure, summed.get(node))))
                found.append(Cost(scores * node.meta["val"].shape[-1], made))
            else:
                dims = _groups(structure, summed[node]) if node in summed else made
                found.append(Cost(2.0 * node.meta["val"].numel() * first.shape[-1], dims))
    return found


def _groups(structure: Structure, labels: Tensor | None) -> tuple[Tensor, ...]:
    return () if labels is None else (structure.group_of[labels.flatten()],)


def _channels(structure: Structure, node: Node) -> tuple[Tensor, ...]:
    """The groups along each channel dimension, or dimensions of heads, of the output of ``node``."""
    value = structure.labels.values[node]
    if not isinstance(value, Value):
        return ()
    return tuple(structure.group_of[labels.flatten()] for labels in (*value.labels.values(), *value.head_labels))


def _traced(structure: Structure) -> int:
    """The number of examples that the graph was traced with."""
    nodes = structure.trace.graph.nodes
    inputs = [node for node in nodes if node.op == "placeholder" and node not in structure.trace.tensors]
    return max(batch_size(tuple(node.meta["val"] for node in inputs)), 1)
