"""Finds the network's inputs in training by a hook on the network; the training step may have any form."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lightning_fold.errors import ArgumentError
from lightning_fold.inputs import Inputs, join_inputs, on_device
from lightning_fold.storage.checkpoints import network_of, record_of
from lightning_fold.structure.graph.trace import evaluation_mode


class _Reached(BaseException):
    """Ends a training step once the inputs are known; the step's error handlers do not catch it."""


def network_inputs(pl_module: lightning.LightningModule, batch: Any, batch_idx: int) -> Inputs:
    """The arguments of the first call of the network in ``training_step``: positional if possible, else by name.

    The step runs on a copy of ``batch`` and stops when it calls the network. It runs without gradients, logging or
    compiled code, with modules in evaluation mode, and does not advance the random number generators.

    Raises:
        ArgumentError: the step mixes positional-only and keyword-only arguments, or reaches a manual backward pass or
            an optimizer step before it calls the network.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Reached

    network = network_of(pl_module)
    indexed = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    handles = [network.register_forward_pre_hook(look, with_kwargs=True), register_optimizer_step_pre_hook(_stop)]
    try:
        with _undisturbed(pl_module), suppress(_Reached):
            pl_module.training_step(deepcopy(batch), *([batch_idx] if indexed else []))
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise _never_called(pl_module)
    return _in_order(network, *seen[0])


def global_inputs(trainer: lightning.Trainer, inputs: Inputs) -> Inputs:
    """The inputs of all processes as one batch, the same on each; those of the first if they cannot be joined."""
    if trainer.world_size == 1:
        return inputs
    everyones: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyones, on_device(inputs, "cpu"))
    joined = join_inputs(everyones)
    return on_device(everyones[0] if joined is None else joined, trainer.lightning_module.device)


def _stop(*_: Any, **__: Any) -> None:
    raise _Reached


def _ignore(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def _undisturbed(pl_module: lightning.LightningModule) -> Iterator[None]:
    trainer = pl_module._trainer
    schedulers = [] if trainer is None else [config.scheduler for config in trainer.strategy.lr_scheduler_configs]
    with ExitStack() as stack:
        stack.enter_context(_replaced(pl_module, log=_ignore, manual_backward=_stop))
        for scheduler in schedulers:
            stack.enter_context(_replaced(scheduler, step=_ignore))
        for context in (isolate_rng(), torch.no_grad(), evaluation_mode(pl_module)):
            stack.enter_context(context)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for parameter in pl_module.parameters():  # a step may toggle optimizers
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
        yield


@contextmanager
def _replaced(owner: Any, **methods: Any) -> Iterator[None]:
    """Replace ``methods`` inside the block; afterwards restore every attribute, including counters."""
    before = dict(vars(owner))
    vars(owner).update(methods)
    try:
        yield
    finally:
        vars(owner).clear()
        vars(owner).update(before)


def _never_called(pl_module: lightning.LightningModule) -> ValueError:
    kind, path = type(pl_module).__name__, record_of(pl_module).network
    call = f"self.{path}(...)" if path else "self(...)"
    children = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
    return ArgumentError(
        f"{kind}.training_step does not call {call}, which shows the network's inputs; expected that call before any "
        f"optimizer step. Name the submodule that it calls: module=NAME, for example one of {children}."
    )


def _in_order(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """Arguments in order, with defaults filled in; all of them by name if one has no position."""
    if not kwargs:
        return args
    parameters = list(inspect.signature(network.forward).parameters.values())
    bound = inspect.signature(network.forward).bind(*args, **kwargs)
    given = [parameter for parameter in parameters if parameter.name in bound.arguments]
    if any(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in given):
        return _by_name(network, given, bound.arguments)
    bound.apply_defaults()
    return bound.args[: parameters.index(given[-1]) + 1]


def _by_name(network: nn.Module, given: list[inspect.Parameter], values: dict[str, Any]) -> dict[str, Any]:
    unnamed = [p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
    if unnamed:
        raise ArgumentError(
            f"{type(network).__name__}.forward was called with {unnamed}, which can be given in order only, and with "
            "others that can be given by name only; expected one kind. Give forward() plain parameters."
        )
    extra = {name: value for p in given if p.kind == p.VAR_KEYWORD for name, value in values[p.name].items()}
    return {p.name: values[p.name] for p in given if p.kind != p.VAR_KEYWORD} | extra
