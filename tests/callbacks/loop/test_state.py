"""The state of the cycles, as it comes back from a checkpoint."""

import torch
from torch import nn

from lightning_fold.callbacks.loop.state import CycleState
from lightning_fold.storage.checkpoints import Snapshot

KEYS = ["masks", "last_good", "last_good_methods", "stopped", "cycles_done"]


def test_checkpoint_brings_the_state_back(tmp_path):
    network, mask = nn.Linear(3, 2), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    state = CycleState({"weight": mask}, Snapshot.take(network, {"accuracy/val": 0.5}), 2, True, 3)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    assert list(stored) == KEYS
    again = CycleState.from_state_dict(stored)
    torch.testing.assert_close(again.masks, {"weight": mask})
    assert again.last_good is not None and again.last_good.metrics == {"accuracy/val": 0.5}
    torch.testing.assert_close(again.last_good.state_dict, dict(network.state_dict()))
    assert (again.last_good_methods, again.stopped, again.cycles_done) == (2, True, 3)


def test_new_state_comes_back_as_a_new_one():
    assert CycleState.from_state_dict(CycleState().state_dict()) == CycleState()


def test_masks_hold_weights_at_zero_and_leave_the_rest():
    network, mask = nn.Linear(3, 2), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    weight, bias = network.weight.detach().clone(), network.bias.detach().clone()
    CycleState({"weight": mask}).apply_masks(network)
    torch.testing.assert_close(network.weight.detach(), torch.where(mask > 0, weight, torch.zeros(())))
    torch.testing.assert_close(network.bias.detach(), bias)
