"""Checkpoints that store the structure of their network, so that a network that shrank in training can be loaded.

Lightning loads the state dict before any callback can read the checkpoint; only the LightningModule's own
``on_load_checkpoint`` runs earlier. ``Classifier`` inherits it from :class:`StructureCheckpoint`; :func:`record_of`
adds it to any other module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.trainer.call import _call_configure_model
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from lightning_fold.complexity import count_parameters
from lightning_fold.errors import ArgumentError, MissingFileError
from lightning_fold.storage.describe import describe
from lightning_fold.storage.files import read_checkpoint
from lightning_fold.storage.rebuild import rebuild

_KEY = "lightning_fold"
_ATTRIBUTE = "compression_record"
_USUAL_NAMES = ("network", "model", "net", "backbone")

# This key is added to the state dict of a compressed network whose class cannot load it: torch's error about unexpected
# keys then shows it first.
ADVICE = (
    "lightning_fold: this network was compressed and its shapes have changed. Load it with "
    "lightning_fold.load_from_checkpoint(YourModule, path), or give the Trainer the callbacks it was trained with"
)

ModuleT = TypeVar("ModuleT", bound=lightning.LightningModule)


@dataclass
class Snapshot:
    """A network at one moment: its structure, its tensors on the CPU and the metrics measured on it."""

    structure: dict[str, dict[str, Any]]
    state_dict: dict[str, Tensor]
    metrics: dict[str, float]
    parameters: int

    @classmethod
    def take(cls, network: nn.Module, metrics: dict[str, float]) -> "Snapshot":
        """Copy ``network`` in its current state."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        return cls(describe(network), state, dict(metrics), count_parameters(network))

    def network_like(self, network: nn.Module) -> nn.Module:
        """A new network with this structure and these weights; ``network``, of the same class, is not changed."""
        twin = deepcopy(network)
        self.restore(twin)
        return twin

    def restore(self, network: nn.Module) -> None:
        """Give ``network``, of the same class, this structure and these weights."""
        rebuild(network, self.structure)
        network.load_state_dict(self.state_dict)


@dataclass
class CompressionRecord:
    """The compression history of one LightningModule's network.

    Attributes:
        network: dotted path of the network inside the LightningModule; empty for the module itself.
        dense: the network before the first rewrite, or ``None``.
        methods: names of the rewrites so far, with the number of parameters after each.
    """

    network: str
    dense: Snapshot | None = None
    methods: list[dict[str, Any]] = field(default_factory=list)


class StructureCheckpoint(lightning.LightningModule):
    """A LightningModule whose checkpoints store and restore the structure of its network."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the structure of the network to the checkpoint."""
        store_structure(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the network the structure stored in the checkpoint."""
        restore_structure(self, checkpoint)


def record_of(module: lightning.LightningModule, network: str = "") -> CompressionRecord:
    """The record of ``module``; from now on its checkpoints store the structure of its network.

    Args:
        module: any LightningModule.
        network: dotted path of its network. If empty, it is the attribute ``network``, ``model``, ``net`` or
            ``backbone``, or else the only submodule with parameters, or else the whole module.

    If ``configure_model`` builds the network, it is called here; Lightning will call it again later.

    Raises:
        ArgumentError: there is no such submodule, it has no parameters, or another network is already compressed.
    """
    record = vars(module).get(_ATTRIBUTE)
    if record is None and module._trainer is not None:
        _build(module, module._trainer)
    path = _inside_compiled(module, _find_network(module, network))
    if record is None:
        record = CompressionRecord(path)
        object.__setattr__(module, _ATTRIBUTE, record)
        if not isinstance(module, StructureCheckpoint):
            for name, hook in (("on_save_checkpoint", store_structure), ("on_load_checkpoint", restore_structure)):
                object.__setattr__(module, name, _Extended(module, getattr(module, name), hook))
    elif path != record.network:
        raise ArgumentError(
            f"module={network!r}: another callback already compresses {record.network!r} of {type(module).__name__}; "
            "expected the same network for all callbacks."
        )
    return record


def network_of(module: lightning.LightningModule) -> nn.Module:
    """The network of ``module`` to compress."""
    return module.get_submodule(record_of(module).network)


def store_structure(module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Write the structure of ``module``'s network, and its record, into ``checkpoint`` as plain values and tensors."""
    record = record_of(module)
    checkpoint[_KEY] = {
        "network": record.network,
        "structure": describe(network_of(module)),
        "dense": vars(record.dense) if record.dense is not None else None,
        "methods": record.methods,
    }
    if record.methods and not isinstance(module, StructureCheckpoint):
        checkpoint.get("state_dict", {})[ADVICE] = torch.empty(0)


def restore_structure(module: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Give ``module``'s network the structure stored in ``checkpoint``; do nothing if it contains none.

    Raises:
        ArgumentError: the checkpoint belongs to another network; the network is not changed.
    """
    stored = checkpoint.get(_KEY)
    if stored is None:
        return
    checkpoint.get("state_dict", {}).pop(ADVICE, None)
    record = record_of(module, stored["network"])
    rebuild(module.get_submodule(stored["network"]), stored["structure"])
    record.dense = Snapshot(**stored["dense"]) if stored["dense"] is not None else None
    record.methods = list(stored["methods"])


def load_from_checkpoint(kind: type[ModuleT], path: str | Path, **arguments: Any) -> ModuleT:
    """``kind.load_from_checkpoint(path)``, with the network structure stored in the checkpoint.

    Args:
        kind: any LightningModule class; it does not have to use this package.
        path: a checkpoint of this class, compressed or not; read with ``weights_only=True`` by default.
        arguments: arguments of ``LightningModule.load_from_checkpoint``: ``map_location``, ``strict``,
            ``weights_only``, and arguments of the class that are not among its saved hyper-parameters.

    Raises:
        MissingFileError: there is no such file.
        ArgumentError: the checkpoint belongs to another network, is incomplete, or contains pickled code.
    """
    arguments = {"weights_only": True, **arguments}
    if not Path(path).is_file():
        raise MissingFileError(f"load_from_checkpoint({kind.__name__}, {str(path)!r}): there is no such file.")
    if arguments["weights_only"]:
        read_checkpoint(Path(path))
    with _restoring(kind):
        return kind.load_from_checkpoint(path, **arguments)


@contextmanager
def _restoring(kind: type[lightning.LightningModule]) -> Iterator[None]:
    """Add a hook that restores structures to ``kind`` itself, since LightningCLI checkpoints do not load a subclass."""
    original, own = kind.on_load_checkpoint, "on_load_checkpoint" in vars(kind)

    def on_load_checkpoint(self: lightning.LightningModule, checkpoint: dict[str, Any]) -> None:
        original(self, checkpoint)
        restore_structure(self, checkpoint)

    kind.on_load_checkpoint = on_load_checkpoint
    try:
        yield
    finally:
        if own:
            kind.on_load_checkpoint = original
        else:
            del kind.on_load_checkpoint


class _Extended:
    """A hook of a LightningModule followed by another one; picklable, so that it can be sent to another process."""

    def __init__(self, module: lightning.LightningModule, original: Any, then: Any) -> None:
        self.module, self.original, self.then = module, original, then

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        self.original(checkpoint)
        self.then(self.module, checkpoint)


def _build(module: lightning.LightningModule, trainer: lightning.Trainer) -> None:
    """Call ``configure_model`` now, since callbacks are set up before it; Lightning allows repeated calls."""
    if is_overridden("configure_model", module):
        _call_configure_model(trainer)
    if not any(True for _ in module.parameters()):
        raise ArgumentError(
            f"{type(module).__name__} has no parameters when callbacks are set up; expected its network to be built "
            "in __init__ or configure_model. setup() is too late."
        )


def _inside_compiled(module: lightning.LightningModule, path: str) -> str:
    """The path of the network itself, inside the wrapper of ``torch.compile`` if there is one."""
    return f"{path}._orig_mod" if isinstance(module.get_submodule(path), OptimizedModule) else path


def _find_network(module: lightning.LightningModule, path: str) -> str:
    if path:
        names = dict(module.named_modules())
        if path not in names or not any(True for _ in names[path].parameters()):
            found = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
            raise ArgumentError(
                f"module={path!r}: expected a submodule of {type(module).__name__} with parameters; it has {found}."
            )
        return path
    record = vars(module).get(_ATTRIBUTE)
    if record is not None:
        return record.network
    children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    own = [name for name, _ in module.named_parameters(recurse=False)]
    usual = [name for name in _USUAL_NAMES if name in children]
    if usual:
        return usual[0]
    return next(iter(children)) if len(children) == 1 and not own else ""
