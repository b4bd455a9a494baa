"""Networks that need preparation: wrapped, with masks or parametrized weights, or not yet materialized."""

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_fold.errors import ArgumentError
from lightning_fold.structure.graph.trace import unwrapped, unwrapped_once
from lightning_fold.surgery.baking import bake
from lightning_fold.surgery.transaction import Surgery

R = TypeVar("R", bound=Callable[..., Any])


def on_network(rewrite: R) -> R:
    """Call ``rewrite(model, ..., optimizers=...)`` with an unwrapped network.

    ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` are unwrapped; names in the report are those of
    the inner network. Masks of ``torch.nn.utils.prune`` and parametrizations become plain weights first. If the rewrite
    fails, everything is restored. ``DistributedDataParallel`` gets the new parameters afterwards; call the rewrite in
    all processes.

    Raises:
        ArgumentError: a weight is on the meta device or lazy, so it has no values.
    """

    @wraps(rewrite)
    def wrapped(model: nn.Module, *args: Any, optimizers: Iterable[Optimizer] = (), **kwargs: Any) -> Any:
        network = unwrapped(model)
        check_there(rewrite.__name__, network)
        optimizers = list(optimizers)
        with Surgery(network, optimizers) as surgery:
            bake(surgery)
            report = rewrite(network, *args, optimizers=optimizers, **kwargs)
        if network is not model:
            _refresh_ddp(model)
        return report

    return cast(R, wrapped)


def check_there(method: str, model: nn.Module) -> None:
    """Raise ``ArgumentError`` if a parameter or buffer is on the meta device, or has no shape yet."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        call = f"{method}({type(model).__name__})"
        if is_lazy(tensor):
            raise ArgumentError(f"{call}: {name} has no shape yet; run the network once first: model(*example_inputs).")
        if tensor.is_meta:
            raise ArgumentError(
                f"{call}: {name} is on the meta device; expected weights with values. Load them first: "
                "model.to_empty(device='cpu'), then model.load_state_dict(...)."
            )


def _refresh_ddp(model: nn.Module) -> None:
    """Rebuild every DistributedDataParallel around the network: it keeps the parameters that it was built with."""
    while (inner := unwrapped_once(model)) is not model:
        if isinstance(model, DistributedDataParallel):
            _rebuild(model)
        model = inner


def _rebuild(wrapper: DistributedDataParallel) -> None:
    training, hooks = wrapper.training, wrapper._comm_hooks
    options = {name: vars(wrapper)[name] for name in signature(type(wrapper)).parameters if name in vars(wrapper)}
    for said_twice in ("module", "device_mesh", "bucket_cap_mb_list"):
        options.pop(said_twice, None)
    if not wrapper.bucket_bytes_cap_default:
        options["bucket_cap_mb"] = wrapper.bucket_bytes_cap // 2**20
    DistributedDataParallel.__init__(wrapper, wrapper.module, **options)
    wrapper.training = training
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
