"""Callbacks that compress a network while Lightning trains it; import them from ``lightning_fold.callbacks``.

To write your own, subclass :class:`RewriteOnce` (a single rewrite) or :class:`RewriteCallback` (a schedule). Both
receive a :class:`CompressionRun`.
"""

from lightning_fold.callbacks.channel_folding import ChannelFolding
from lightning_fold.callbacks.channel_pruning import ChannelPruning
from lightning_fold.callbacks.compression_monitor import CompressionMonitor
from lightning_fold.callbacks.loop.run import CompressionRun
from lightning_fold.callbacks.low_rank_factorization import LowRankFactorization
from lightning_fold.callbacks.rewriting.base import RewriteCallback
from lightning_fold.callbacks.rewriting.once import RewriteOnce
from lightning_fold.callbacks.smoothness_regularization import SmoothnessRegularization
from lightning_fold.callbacks.squeeze_release import SqueezeRelease

__all__ = [
    "ChannelFolding",
    "ChannelPruning",
    "CompressionMonitor",
    "CompressionRun",
    "LowRankFactorization",
    "RewriteCallback",
    "RewriteOnce",
    "SmoothnessRegularization",
    "SqueezeRelease",
]
