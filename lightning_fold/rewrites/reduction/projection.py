"""Pruning and folding as orthogonal projections of the channels of a group.

An *assignment* is a (channels,) tensor of integers: the cluster of each channel, or -1 for a removed channel. Pruning
has one channel in every cluster; folding has no -1. With the (channels, clusters) membership matrix U, the rows W of
the layer that writes the channels become C W with C = U (U^T U)^-1 U^T: an axis-aligned projection for pruning, cluster
averages for folding.

Source: "Cut Less, Fold More" (arXiv 2602.18116).
"""

import torch
from torch import Tensor

from lightning_fold.errors import ArgumentError


def membership(assignment: Tensor) -> Tensor:
    """U, (channels, clusters) of zeros and ones, float64.

    Raises:
        ArgumentError: a cluster is empty, or there is none.
    """
    clusters = int(assignment.max()) + 1 if len(assignment) else 0
    if clusters < 1 or len(assignment[assignment >= 0].unique()) < clusters:
        raise ArgumentError(
            f"membership({assignment.tolist()}): expected the clusters 0 to k - 1, each with a channel, or -1 for none."
        )
    matrix = torch.zeros(len(assignment), clusters, dtype=torch.float64)
    staying = torch.nonzero(assignment >= 0).flatten()
    matrix[staying, assignment[staying]] = 1
    return matrix


def projector(matrix: Tensor) -> Tensor:
    """C = U (U^T U)^-1 U^T, (channels, channels): symmetric and idempotent."""
    return matrix @ torch.linalg.solve(matrix.T @ matrix, matrix.T)


def project(rows: Tensor, assignment: Tensor) -> Tensor:
    """C ``rows`` for rows (channels, ...), from the assignment: cluster means, and zeros for removed channels."""
    assignment = assignment.to(rows.device)
    staying = torch.nonzero(assignment >= 0).flatten()
    clusters = assignment[staying]
    size = torch.bincount(clusters).to(rows).reshape(-1, *[1] * (rows.dim() - 1))
    means = rows.new_zeros(len(size), *rows.shape[1:]).index_add(0, clusters, rows[staying]) / size
    return torch.zeros_like(rows).index_copy(0, staying, means[clusters])


def reconstruction_error(rows: Tensor, matrix: Tensor) -> float:
    """Squared Frobenius norm of ``rows`` (channels, elements) minus their projection."""
    rows = rows.to(matrix)
    return float((rows - projector(matrix) @ rows).square().sum())


def least_squares_projector(moments: Tensor, matrix: Tensor, ridge: float = 1e-6) -> Tensor:
    """M U (U^T M U)^-1 U^T, (channels, channels): the right factor for the columns of a consumer.

    Among all consumers that read only U^T x, W M U (U^T M U)^-1 has the output closest to W x.

    Args:
        moments: M, (channels, channels) second moments E[x x^T] of the channels where they are read.
        matrix: U, (channels, clusters).
        ridge: share of the mean diagonal of U^T M U that is added to its diagonal, for channels that are always zero.
    """
    inner = matrix.T @ moments @ matrix
    scale = inner.diagonal().mean().clamp_min(torch.finfo(inner.dtype).tiny)
    inner = inner + ridge * scale * torch.eye(len(inner), dtype=inner.dtype)
    return torch.linalg.solve(inner, matrix.T @ moments).T @ matrix.T
