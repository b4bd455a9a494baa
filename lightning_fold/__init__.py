"""Train compressible networks with PyTorch Lightning and hand back small dense ones.

Every rewrite works in place on any network that ``torch.export`` can trace and returns a :class:`RewriteReport`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fold.checkout import check_links
from lightning_fold.complexity import Latency, count_bytes, count_flops, count_parameters, measure_latency
from lightning_fold.errors import ArgumentError, LightningFoldError, RewriteError, TraceError
from lightning_fold.report import Change, Kept, RewriteReport
from lightning_fold.rewrites.exact.minimize import minimize
from lightning_fold.rewrites.factorization.factorize import factorize
from lightning_fold.rewrites.reduction.fold import fold
from lightning_fold.rewrites.reduction.prune import prune
from lightning_fold.rewrites.repair import repair
from lightning_fold.rewrites.sparsity.release import release
from lightning_fold.rewrites.sparsity.sparsify import sparsify, sparsity_of
from lightning_fold.storage.describe import describe
from lightning_fold.storage.export import ExportReport, export
from lightning_fold.storage.files import load, save
from lightning_fold.storage.rebuild import rebuild
from lightning_fold.structure.groups import ChannelGroup, Member, channel_groups

if TYPE_CHECKING:
    from lightning_fold.storage.checkpoints import load_from_checkpoint

__all__ = [
    "ArgumentError",
    "Change",
    "ChannelGroup",
    "ExportReport",
    "Kept",
    "Latency",
    "LightningFoldError",
    "Member",
    "RewriteError",
    "RewriteReport",
    "TraceError",
    "channel_groups",
    "count_bytes",
    "count_flops",
    "count_parameters",
    "describe",
    "export",
    "factorize",
    "fold",
    "load",
    "load_from_checkpoint",
    "measure_latency",
    "minimize",
    "prune",
    "rebuild",
    "release",
    "repair",
    "save",
    "sparsify",
    "sparsity_of",
]

check_links(Path(__file__).parent)


def __getattr__(name: str) -> Any:
    """``load_from_checkpoint`` on first use: it alone needs Lightning, which takes seconds to import."""
    if name == "load_from_checkpoint":
        from lightning_fold.storage.checkpoints import load_from_checkpoint

        return load_from_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
