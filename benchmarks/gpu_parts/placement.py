"""Where and in which memory format networks and images are."""

import torch
from torch import nn


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last on GPUs; torch's kernels for CPUs can write past the end of weights of few channels so."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on the device, in the memory format that is fast there."""
    return network.to(device, memory_format=memory_format(device))  # pyright: ignore[reportCallIssue]
