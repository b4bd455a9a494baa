"""Hooks for one block of code: what they see, and that none is left."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_fold.rewrites.observe import forward_hooks, forward_pre_hooks


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_pre_hooks_see_inputs_by_name() -> None:
    model, x, seen = _Named(), torch.randn(4, 3), []
    with forward_pre_hooks([(model.layer, lambda module, args, kwargs: seen.append((args, kwargs["input"])))]):
        model(x)
    model(x)
    ((args, given),) = seen
    assert args == () and given is x


def test_hooks_see_outputs_and_may_replace_them() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), torch.randn(4, 3)
    with forward_hooks([(model[0], lambda module, args, output: torch.zeros_like(output))]):
        replaced = model(x)
    assert torch.equal(replaced, model[1].bias.expand(4, 2)) and not torch.equal(model(x), replaced)


@pytest.mark.parametrize("hooks", [forward_hooks, forward_pre_hooks])
@pytest.mark.parametrize("fails", ["inside", "before"])
def test_no_hook_is_left_after_a_failure(hooks: Callable[..., Any], fails: str) -> None:
    """Whether the block fails, or the second pair cannot be made."""
    model = nn.Linear(3, 2)

    def pairs():
        yield model, lambda *given: None
        if fails == "before":
            raise KeyError("stop")

    with pytest.raises(KeyError), hooks(pairs()):
        assert len(model._forward_hooks) + len(model._forward_pre_hooks) == 1
        raise KeyError("stop")
    assert not model._forward_hooks and not model._forward_pre_hooks
