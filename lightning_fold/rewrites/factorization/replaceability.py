"""Observe how a network uses its layers in one forward pass, and find the layers that can be replaced."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.inputs import Inputs, call
from lightning_fold.rewrites.transaction import TOLERANCES, outputs, relative_error
from lightning_fold.structure.graph.trace import evaluation_mode


@dataclass
class Use:
    """How the network uses a layer in one forward pass in evaluation mode.

    Attributes:
        calls: the inputs of each call.
        read: attributes of the layer that other code reads and that two layers in its place would not have.
    """

    calls: list[Inputs] = field(default_factory=list)
    read: list[str] = field(default_factory=list)


def find_uses(model: nn.Module, example_inputs: Inputs, layers: Iterable[nn.Module]) -> dict[nn.Module, Use]:
    """How each layer is used.

    This uses no hooks: with hooks, ``nn.TransformerEncoderLayer`` does not take its fast path, which reads weights.
    """
    uses = {layer: Use() for layer in layers}
    with evaluation_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"), ExitStack() as stack:
        for layer, use in uses.items():
            stack.enter_context(_watched(layer, use))
        call(model, example_inputs)
    return uses


def find_irreplaceable(model: nn.Module, example_inputs: Inputs, uses: dict[nn.Module, Use]) -> list[nn.Module]:
    """The layers of ``uses`` that the network does not allow to be replaced.

    The network may call such a layer through another reference than its submodule, or check its type. To find out, each
    layer is wrapped in an ``nn.Sequential``, which must be called equally often and must not change the outputs.
    """
    expected = _reproducible(model, example_inputs)

    def search(layers: list[nn.Module]) -> list[nn.Module]:
        with _behind_sequential(model, layers) as stand_ins:
            try:
                same = _is_same(_reproducible(model, example_inputs), expected)
            except Exception:  # noqa: BLE001  a network's own code may raise anything
                same = False
        if same and all(stand_ins[layer].called == len(uses[layer].calls) for layer in layers):
            return []
        half = len(layers) // 2
        return search(layers[:half]) + search(layers[half:]) if half else layers

    return search(list(uses)) if uses else []


class _StandIn(nn.Sequential):
    called = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called += 1
        return self[0](*args, **kwargs)


@contextmanager
def _behind_sequential(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, _StandIn]]:
    stand_ins = {layer: _StandIn(layer) for layer in layers}
    tables = [(module._modules, dict(module._modules)) for module in model.modules()]
    for table, children in tables:
        table.update({name: stand_ins[child] for name, child in children.items() if child in stand_ins})
    try:
        yield stand_ins
    finally:
        for table, children in tables:
            table.update(children)


def _reproducible(model: nn.Module, example_inputs: Inputs) -> list[Tensor]:
    with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(0)
        return outputs(model, example_inputs)


def _is_same(found: list[Tensor], expected: list[Tensor]) -> bool:
    tolerance = max((TOLERANCES.get(value.dtype, 1e-4) for value in expected), default=1e-4)
    return len(found) == len(expected) and relative_error(found, expected) <= tolerance


@contextmanager
def _watched(layer: nn.Module, use: Use) -> Iterator[None]:
    """Record how ``layer`` is used inside the block."""
    kind, pair, inside = type(layer), nn.Sequential(), False

    def observed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        use.calls.append(kwargs or args)
        inside = True  # the layer reads its own attributes; these reads do not count
        try:
            return forward(*args, **kwargs)
        finally:
            inside = False

    class Watched(kind):
        def __getattribute__(self, name: str) -> Any:
            if not inside and not hasattr(pair, name):
                use.read.append(name)
            found = super().__getattribute__(name)
            return partial(observed, found) if name == "forward" else found

    layer.__class__ = Watched
    try:
        yield
    finally:
        layer.__class__ = kind


def left_alone(reasons: Mapping[str, str]) -> str:
    """The sentence about weights that are not changed: each reason with the first three names."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name or "the network")
    found = [f"{', '.join(some[:3])}{', ...' * (len(some) > 3)}: {reason}" for reason, some in names.items()]
    return f" Left alone: {'; '.join(found)}." if found else ""
