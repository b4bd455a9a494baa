from . import callbacks, data, errors, layers, models, modules, regularizers, schedules
from .complexity import Latency, count_bytes, count_flops, count_parameters, measure_latency
from .errors import ArgumentError, LightningFoldError, RewriteError, TraceError
from .report import Change, Kept, RewriteReport
from .rewrites.exact.minimize import minimize
from .rewrites.factorization.factorize import factorize
from .rewrites.reduction.fold import fold
from .rewrites.reduction.prune import prune
from .rewrites.repair import repair
from .rewrites.sparsity.release import release
from .rewrites.sparsity.sparsify import sparsify, sparsity_of
from .storage.checkpoints import load_from_checkpoint
from .storage.describe import describe
from .storage.export import ExportReport, export
from .storage.files import load, save
from .storage.rebuild import rebuild
from .structure.groups import ChannelGroup, Member, channel_groups
from .structure.rules.registration import register_operator

__version__: str

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
    "callbacks",
    "channel_groups",
    "count_bytes",
    "count_flops",
    "count_parameters",
    "data",
    "describe",
    "errors",
    "export",
    "factorize",
    "fold",
    "layers",
    "load",
    "load_from_checkpoint",
    "measure_latency",
    "minimize",
    "models",
    "modules",
    "prune",
    "rebuild",
    "register_operator",
    "regularizers",
    "release",
    "repair",
    "save",
    "schedules",
    "sparsify",
    "sparsity_of",
]
