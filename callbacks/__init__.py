"""Callbacks that compress a network while Lightning trains it; import them from ``lightning_fold.callbacks``."""

from lightning_fold.callbacks.folding import ChannelFolding
from lightning_fold.callbacks.low_rank import LowRankFactorization
from lightning_fold.callbacks.monitor import CompressionMonitor
from lightning_fold.callbacks.pruning import ChannelPruning
from lightning_fold.callbacks.smoothness import SmoothnessRegularization
from lightning_fold.callbacks.squeeze_release import SqueezeRelease

__all__ = [
    "ChannelFolding",
    "ChannelPruning",
    "CompressionMonitor",
    "LowRankFactorization",
    "SmoothnessRegularization",
    "SqueezeRelease",
]
