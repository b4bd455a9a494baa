"""CycleState: how far the cycles of a run have come."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fold.storage.checkpoints import Snapshot


@dataclass
class CycleState:
    """What a resumed run needs to know of its cycles.

    Attributes:
        masks: for each pruned parameter, by dotted name, zeros where it is held at zero; empty outside masked phases.
        last_good: the network after the last good cycle; ``None`` before it.
        last_good_methods: how many rewrites had been done to it.
        stopped: whether the cycles ended early.
        cycles_done: the number of cycles that have ended.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    last_good: Snapshot | None = None
    last_good_methods: int = 0
    stopped: bool = False
    cycles_done: int = 0

    def state_dict(self) -> dict[str, Any]:
        """The values as plain ones and tensors, for a checkpoint."""
        return vars(self) | {"last_good": vars(self.last_good) if self.last_good is not None else None}

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> "CycleState":
        """The state that a checkpoint holds, perhaps among other keys."""
        good = state_dict["last_good"]
        return cls(
            masks=state_dict["masks"],
            last_good=Snapshot(**good) if good is not None else None,
            last_good_methods=state_dict.get("last_good_methods", 0),
            stopped=state_dict["stopped"],
            cycles_done=state_dict["cycles_done"],
        )

    def move_masks(self, device: torch.device) -> None:
        """Put the masks on ``device``."""
        self.masks = {name: mask.to(device) for name, mask in self.masks.items()}

    @torch.no_grad()
    def apply_masks(self, network: nn.Module) -> None:
        """Set the masked weights of ``network`` to zero."""
        parameters = dict(network.named_parameters())
        for name, mask in self.masks.items():
            parameters[name].mul_(mask)
