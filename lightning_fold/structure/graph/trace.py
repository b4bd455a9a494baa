"""One graph of ATen operators for any network that ``torch.export`` can trace."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn.modules import transformer

from lightning_fold.errors import TraceError
from lightning_fold.inputs import Inputs, as_arguments, few_examples
from lightning_fold.structure.graph.canonical import put_weights_second, write_out_einsum
from lightning_fold.structure.graph.decomposed_norms import join_written_norms
from lightning_fold.structure.graph.global_response_norms import join_channel_shares
from lightning_fold.structure.graph.training_graph import merge_training_graph
from lightning_fold.structure.operators.nodes import is_aten, is_in_place, is_view


@dataclass(frozen=True)
class Trace:
    """The graph of a network in evaluation mode, with the parts that run only in training.

    Attributes:
        graph: ATen operators; ``node.meta["val"]`` holds shapes and dtypes.
        tensors: parameters, buffers and lifted constants by placeholder node. Tied tensors share one name.
        names: the canonical dotted name of each placeholder that is a parameter or buffer of the network.
        modules: the modules of the network by dotted name.
        evaluated: the nodes behind the outputs of evaluation; all others run only in training.
    """

    graph: Graph
    tensors: Mapping[Node, Tensor]
    names: Mapping[Node, str]
    modules: Mapping[str, nn.Module]
    evaluated: frozenset[Node]

    @property
    def outputs(self) -> list[Node]:
        """The nodes whose values the network returns."""
        return list(_output(self.graph).all_input_nodes)


def tensor_names(model: nn.Module) -> dict[int, str]:
    """The first dotted name of every parameter and buffer, by ``id``: tied tensors have one name."""
    names: dict[int, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), name)
    return names


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode inside the block; restore each module's mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def training_paths(model: nn.Module) -> Iterator[None]:
    """Put modules that have children in training mode inside the block, so that they call everything training needs.

    Modules without children (BatchNorm, Dropout) are in evaluation mode: they compute the same as in evaluation.
    """
    with evaluation_mode(model):
        for module in model.modules():
            module.training = bool(module._modules)
        yield


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and the wrapper of ``torch.compile``."""
    while (inner := unwrapped_once(model)) is not model:
        model = inner
    return model


def unwrapped_once(model: nn.Module) -> nn.Module:
    """The module inside the outermost wrapper; ``model`` itself if it is not a wrapper."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Export ``model`` in evaluation mode and name the tensors its graph reads.

    If evaluation does not read all parameters (auxiliary heads), the training paths are exported too and merged into
    the same graph. If they cannot be traced, a warning says so and the graph of evaluation alone is used.

    Args:
        model: any module that ``torch.export`` can trace; it is not changed.
        example_inputs: a tensor, a tuple of positional inputs or a dict of inputs by name, batch first.

    Raises:
        TraceError: the model cannot be traced with these inputs; the message gives the cause.
    """
    inputs = few_examples(example_inputs)  # two examples are enough to read the structure
    programs = [_export(model, inputs, evaluation_mode)]
    if unread := _unread_parameters(model, programs[0]):
        try:
            programs.append(_export(model, inputs, training_paths))
        except TraceError as error:
            warnings.warn(
                f"{type(model).__name__} does not read {', '.join(unread[:3])}{', ...' * (len(unread) > 3)} in "
                f"evaluation mode, and its computation in training cannot be traced: {error} Channels read only "
                "in training are unknown: train a few steps before you rely on the result.",
                stacklevel=2,
            )
    if any(_writes_views(program.graph) for program in programs):
        programs = [
            program.run_decompositions({}) for program in programs
        ]  # rules read functional operators: none may change its operands
    graph, tensors, names = _named(model, programs[0])
    returned = len(_returned(graph))
    for program in programs[1:]:
        merge_training_graph(graph, tensors, names, *_named(model, program))
    modules = dict(model.named_modules())
    join_written_norms(graph, names, _runs(graph, modules))
    join_channel_shares(graph)
    put_weights_second(graph, tensors)
    return Trace(graph, tensors, names, modules, _read_for(_returned(graph)[:returned]))


def _output(graph: Graph) -> Node:
    (output,) = (node for node in graph.nodes if node.op == "output")
    return output


def _returned(graph: Graph) -> tuple[Any, ...]:
    """The outputs of the graph, nodes and numbers; those of evaluation come first."""
    returned: Any = _output(graph).args[0]
    return tuple(returned)


def _read_for(returned: tuple[Any, ...]) -> frozenset[Node]:
    """Every node that ``returned`` depends on, including ``returned`` itself."""
    read: set[Node] = set()
    waiting = [value for value in returned if isinstance(value, Node)]
    while waiting:
        node = waiting.pop()
        if node not in read:
            read.add(node)
            waiting += node.all_input_nodes
    return frozenset(read)


def _export(
    model: nn.Module, inputs: Inputs, mode: Callable[[nn.Module], AbstractContextManager[None]]
) -> ExportedProgram:
    with mode(model), torch.no_grad(), without_fast_paths():
        try:
            return write_out_einsum(torch.export.export(model, *as_arguments(inputs), strict=False))
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TraceError(
                f"{type(model).__name__} cannot be traced with the example inputs {_shapes(inputs)}: {error}. "
                "Pass example inputs that model(*example_inputs) accepts, or a dict for model(**example_inputs)."
            ) from error


def _unread_parameters(model: nn.Module, program: ExportedProgram) -> list[str]:
    """The parameters that the graph reads under none of their names."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    read: dict[str, bool] = {
        str(specs[node.name].target): bool(node.users)
        for node in program.graph.nodes
        if node.op == "placeholder" and specs[node.name].kind == InputKind.PARAMETER
    }
    known = {id(parameters[name]) for name, used in read.items() if used}
    return [name for name in read if id(parameters[name]) not in known]


def _named(model: nn.Module, program: ExportedProgram) -> tuple[Graph, dict[Node, Tensor], dict[Node, str]]:
    """The graph, the tensors of its placeholders, and the names of those that the network owns."""
    names = tensor_names(model)
    live = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    tensors, node_names = {}, {}
    for node in program.graph.nodes:
        if node.op != "placeholder" or specs[node.name].kind == InputKind.USER_INPUT:
            continue
        target = specs[node.name].target
        if target in live:
            tensors[node] = live[target].detach()
            node_names[node] = names[id(live[target])]
        elif isinstance(lifted := program.constants.get(str(target)), Tensor):
            tensors[node] = lifted.detach()
    return program.graph, tensors, node_names


def interpret(trace: Trace, placeholder: Callable[[Node], Any], call: Callable[[Node, tuple, dict], Any]) -> dict:
    """Run the graph forwards on values of any kind: ``{node: value}``.

    Args:
        trace: the graph.
        placeholder: the value of an input, parameter or buffer.
        call: the value of an operator, given its node and its arguments as values.
    """
    values: dict[Node, Any] = {}
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            values[node] = placeholder(node)
        elif node.op == "call_function" and node.target is getitem:
            values[node] = values[node.args[0]][node.args[1]]
        elif node.op == "call_function":
            args = map_arg(node.args, values.__getitem__)
            kwargs = map_arg(node.kwargs, values.__getitem__)
            values[node] = call(node, args, kwargs)
        elif node.op == "get_attr":
            values[node] = None
    return values


def layer_of(node: Node) -> str:
    """The dotted name of the module that ran ``node``; empty for the network itself."""
    return layers_of(node)[-1]


def layers_of(node: Node) -> list[str]:
    """The dotted names of all modules that ``node`` is part of, the network itself first."""
    stack = node.meta.get("nn_module_stack") or {}
    return ["", *(path.removeprefix("L['self'].").removeprefix("L['self']") for path, _ in stack.values())]


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Run attention layers as their separate operators, and compiled modules in eager mode.

    torch's transformer layers also check whether a mask is causal, only to choose a faster operator. The check needs
    the mask's values, which an export does not have, and the mask is passed on anyway.
    """
    before, detect = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        transformer._detect_is_causal_mask = detect


def _runs(graph: Graph, modules: Mapping[str, nn.Module]) -> list[tuple[nn.Module, list[Node]]]:
    """The modules that run operators directly, each with its operators in order."""
    runs: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and layer_of(node) in modules:
            runs.setdefault(layer_of(node), []).append(node)
    return [(modules[path], nodes) for path, nodes in runs.items()]


def _writes_views(graph: Graph) -> bool:
    """Whether an in-place operator changes a tensor that other nodes read, directly or through a view.

    When an ATen operator changes a tensor, later nodes read its result; other operators may return nothing.
    """
    for node in graph.nodes:
        if node.op != "call_function" or not is_in_place(node):
            continue
        changed = node.args[0] if is_aten(node.target) else None
        if changed is None:
            return True
        if isinstance(changed, Node) and (is_view(changed) or any(is_view(user) for user in changed.users)):
            return True
    return False


def _shapes(inputs: Inputs) -> str:
    args, kwargs = as_arguments(inputs)
    named = [("", value) for value in args] + [(f"{name}=", value) for name, value in kwargs.items()]
    return ", ".join(n + (str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__) for n, v in named)
