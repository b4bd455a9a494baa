"""What is read of a tiny network, in forms that can be written down by hand."""

import torch
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.structure.groups import read_structure


class Apply(nn.Module):
    """A function of any number of inputs as a module."""

    def __init__(self, function, **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def constant(like: Tensor, value: float) -> Tensor:
    """``value`` in the shape and type of ``like``."""
    return like.new_full(like.shape, value)


def channels(model: nn.Module, *inputs: Tensor) -> list[set[str]]:
    """The places of every channel that can leave: ``0.weight[1]`` a row, ``2.weight[:, 1]`` a column."""
    free = [group for group in lf.channel_groups(model, inputs) if group.pinned is None]
    return [
        {f"{m.tensor}[{':, ' * m.dim}{i}]" for m in group.members for i in m.indices[channel].tolist()}
        for group in free
        for channel in range(group.size)
    ]


def pinned(model: nn.Module, *inputs: Tensor) -> set[tuple[str, int]]:
    """Tensor and dimension of everything that cannot leave."""
    groups = [group for group in lf.channel_groups(model, inputs) if group.pinned is not None]
    return {(member.tensor, member.dim) for group in groups for member in group.members}


def known(model: nn.Module, *inputs: Tensor) -> Tensor:
    """What the run on constants knows of the output, NaN for the rest; whatever it knows is what the network gives."""
    structure = read_structure(model.eval(), inputs)
    found = structure.constants[structure.trace.outputs[0]]
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        others = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs]
        with torch.no_grad():
            expected = model(*others)
        torch.testing.assert_close(torch.where(found.isnan(), expected, found), expected, rtol=1e-12, atol=1e-12)
    return found
