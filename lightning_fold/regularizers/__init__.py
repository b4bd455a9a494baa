"""Penalties on weights that make a network easier to compress."""

from lightning_fold.regularizers.differences import first_difference, second_difference
from lightning_fold.regularizers.group_sparsity import GroupSparsity, group_sparsity
from lightning_fold.regularizers.nuclear import nuclear_norm, polar_factor
from lightning_fold.regularizers.penalties import Penalty
from lightning_fold.regularizers.penalty import with_gradient
from lightning_fold.regularizers.smoothness import Smoothness
from lightning_fold.regularizers.spectrum import spectrum_decay

__all__ = [
    "GroupSparsity",
    "Penalty",
    "Smoothness",
    "first_difference",
    "group_sparsity",
    "nuclear_norm",
    "polar_factor",
    "second_difference",
    "spectrum_decay",
    "with_gradient",
]
