"""Replace branches whose output does not depend on their input by a constant."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import Node

from lightning_fold.inputs import Inputs
from lightning_fold.layers import Constant
from lightning_fold.report import Kept
from lightning_fold.rewrites.transaction import check_exact, outputs
from lightning_fold.structure.constant_values import channel_constants
from lightning_fold.structure.graph.trace import layers_of
from lightning_fold.structure.groups import Structure
from lightning_fold.structure.liveness import live_groups
from lightning_fold.structure.operators.nodes import family
from lightning_fold.structure.values import Value
from lightning_fold.surgery.transaction import Surgery

_ELEMENTWISE = ("pointwise", "product", "identity", "cast")


@dataclass(frozen=True)
class Branch:
    """The module ``last`` returns ``constants`` along ``dim``; only it reads the outputs of the modules ``before``."""

    last: str
    before: tuple[str, ...]
    constants: Tensor
    dim: int


@dataclass(frozen=True)
class _Call:
    """The operators of a module with parameters that is called once, with one value, and returns one value."""

    path: str
    nodes: frozenset[Node]
    source: Node
    result: Node

    def keeps_shape(self, dim: int) -> bool:
        """Whether the module keeps the shape, except for the number of channels.

        A size of 1 does not show this, and single channels have no labels to show whether anything needs them; both
        count as no.
        """
        before, after = (node.meta["val"].shape for node in (self.source, self.result))
        alike = (a == b and (a > 1 or d == 0) for d, (a, b) in enumerate(zip(before, after, strict=False)) if d != dim)
        return len(before) == len(after) and all(alike) and before[dim] > 1


def replace_branches(surgery: Surgery, structure: Structure, example_inputs: Inputs) -> tuple[bool, list[Kept]]:
    """Replace each constant branch by its constant.

    Returns:
        Whether any branch was replaced, and the branches that are kept because the network does not run without them.
    """
    model, branches, kept = surgery.model, find_branches(structure), []
    expected = outputs(model, example_inputs) if branches else []
    for branch in branches:
        try:
            with Surgery(model, surgery.optimizers) as trial:
                _replace(trial, branch)
                check_exact("minimize", model, example_inputs, expected)
                outputs(model, example_inputs)  # the fast paths of torch's own layers read attributes of other modules
        except (RuntimeError, AttributeError, TypeError):
            kept.append(Kept(branch.last, len(branch.constants), "is constant, but the code needs more of its module"))
    return len(kept) < len(branches), kept


def find_branches(structure: Structure) -> list[Branch]:
    """The branches whose value does not depend on the input, and which own more parameters than that value needs.

    A branch ends in the largest module that returns the constant and keeps the shape of its input, except for the
    number of channels. It extends backwards over a chain of such modules and element-wise operators.
    """
    needed: dict[Node, Tensor] = {}
    live_groups(structure, needed_at=needed)
    fixed = {node for node in needed if _constants(structure, needed[node], node) is not None}
    nodes = [node for node in structure.trace.graph.nodes if node in fixed]
    ends = [node for node in nodes if any(user in needed and user not in fixed for user in node.users)]
    calls = _calls(structure) if ends else {}
    found: dict[str, Branch] = {}
    for node in ends:
        branch = _branch(structure, needed[node], calls, node)
        if branch is not None:
            found[branch.last] = branch
    return list(found.values())


def _branch(structure: Structure, needed: Tensor, calls: dict[Node, list[_Call]], node: Node) -> Branch | None:
    for result in _elementwise(structure, node):
        dim, constants = _channel_dim(structure, result), _constants(structure, needed, result)
        if dim is None or constants is None:
            return None
        last = next((call for call in calls.get(result, ()) if call.keeps_shape(dim)), None)
        if last is not None:
            nodes, before = _before(structure, calls, last, dim)
            tensors = structure.trace.tensors
            owned = sum(tensors[held].numel() for held in structure.trace.names if nodes.issuperset(held.users))
            return Branch(last.path, tuple(before), constants, dim) if owned > len(constants) else None
    return None


def _channel_dim(structure: Structure, node: Node) -> int | None:
    """The only dimension with removable channels, or else the only one with channels; ``None`` if it is not unique."""
    value = structure.labels.values[node]
    fields = value.labels if isinstance(value, Value) else {}
    free = [d for d, f in fields.items() if not structure.pinned.keys() >= set(structure.group_of[f].tolist())]
    dims = free or list(fields)
    return dims[0] if len(dims) == 1 else None


def _before(structure: Structure, calls: dict[Node, list[_Call]], last: _Call, dim: int) -> tuple[set[Node], list[str]]:
    """All operators of the branch that ends in ``last``, and the paths of its other modules."""
    nodes, source, paths = set(last.nodes), last.source, []
    while nodes.issuperset(source.users):
        call = next((call for call in calls.get(source, ()) if call.keeps_shape(dim)), None)
        if call is not None:
            nodes, source, paths = nodes | call.nodes, call.source, [*paths, call.path]
        elif family(source) in _ELEMENTWISE and len(source.all_input_nodes) == 1:
            nodes, source = nodes | {source}, source.all_input_nodes[0]
        else:
            break
    return nodes, paths


def _replace(surgery: Surgery, branch: Branch) -> None:
    modules = {path: surgery.model.get_submodule(path) for path in (branch.last, *branch.before)}
    trained = any(parameter.requires_grad for module in modules.values() for parameter in module.parameters())
    for path, module in modules.items():
        new = Constant(branch.constants, dim=branch.dim) if path == branch.last else nn.Identity()
        surgery.replace_module(path, new.requires_grad_(trained).train(module.training))


def _calls(structure: Structure) -> dict[Node, list[_Call]]:
    """The modules that return each value, the largest first."""
    inside: dict[str, list[Node]] = {}
    for node in structure.trace.graph.nodes:
        for path in layers_of(node) if node.op == "call_function" else ():
            inside.setdefault(path, []).append(node)
    calls: dict[Node, list[_Call]] = {}
    for path, nodes in sorted(inside.items(), key=lambda item: -len(item[1])):
        members = frozenset(nodes)
        results = [node for node in nodes if not members.issuperset(node.users)]
        sources = {source for node in nodes for source in _values(structure, node) if source not in members}
        module = structure.trace.modules.get(path)
        if path and module is not None and len(results) == 1 == len(sources) and any(True for _ in module.parameters()):
            calls.setdefault(results[0], []).append(_Call(path, members, sources.pop(), results[0]))
    return calls


def _elementwise(structure: Structure, node: Node) -> Iterator[Node]:
    """``node``, and the values before it in a chain of element-wise operators that each read one value."""
    yield node
    while family(node) in _ELEMENTWISE and len(sources := _values(structure, node)) == 1:
        node = sources[0]
        yield node


def _values(structure: Structure, node: Node) -> list[Node]:
    """The inputs of ``node`` that are not parameters, buffers or constants of the code."""
    return [source for source in node.all_input_nodes if source not in structure.trace.tensors]


def _constants(structure: Structure, needed: Tensor, node: Node) -> Tensor | None:
    """The value of each channel of ``node``, if all channels in the groups ``needed`` are constant; zero for others.

    ``None`` also if no channel is needed: such channels are simply removed.
    """
    value, dim = structure.labels.values[node], _channel_dim(structure, node)
    if node.op != "call_function" or not isinstance(value, Value) or dim is None:
        return None
    given, read = (
        channel_constants(structure.constants[node], dim),
        needed[structure.group_of[value.labels[dim]]],
    )
    if given is None or not bool(read.any()) or bool(given[read.to(given.device)].isnan().any()):
        return None
    return given.nan_to_num()
