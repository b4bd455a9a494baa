"""CycleState: the progress of a run's cycles."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.storage.checkpoints import Snapshot


@dataclass
class CycleState:
    """The state of the cycles that a resumed run needs.

    Attributes:
        masks: for each pruned parameter, by dotted name, 0 where a weight is held at zero; empty outside masked phases.
        last_good: the network after the last good cycle; ``None`` before the first one.
        last_good_methods: number of rewrites that led to ``last_good``.
        stopped: whether the cycles ended early.
        cycles_done: number of cycles that have ended.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    last_good: Snapshot | None = None
    last_good_methods: int = 0
    stopped: bool = False
    cycles_done: int = 0

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors, for a checkpoint."""
        return vars(self) | {"last_good": vars(self.last_good) if self.last_good is not None else None}

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> "CycleState":
        """Read the state from a checkpoint; other keys are ignored."""
        good = state_dict["last_good"]
        return cls(
            masks=state_dict["masks"],
            last_good=Snapshot(**good) if good is not None else None,
            last_good_methods=state_dict.get("last_good_methods", 0),
            stopped=state_dict["stopped"],
            cycles_done=state_dict["cycles_done"],
        )

    def move_masks(self, device: torch.device) -> None:
        """Move the masks to ``device``."""
        self.masks = {name: mask.to(device) for name, mask in self.masks.items()}

    @torch.no_grad()
    def apply_masks(self, network: nn.Module) -> None:
        """Set the masked weights of ``network`` to zero."""
        parameters = dict(network.named_parameters())
        for name, mask in self.masks.items():
            parameters[name].mul_(mask)
