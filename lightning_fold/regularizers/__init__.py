"""Penalties on weights that make a network easier to compress."""

from lightning_fold.regularizers.group_sparsity import GroupSparsity

__all__ = ["GroupSparsity"]
