"""Pruning and folding are orthogonal projections; folding to one cluster more is never worse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from lightning_fold.rewrites.reduction.projection import (
    least_squares_projector,
    membership,
    project,
    projector,
    reconstruction_error,
)

seeds = st.integers(0, 10_000)


@st.composite
def assignments(draw) -> torch.Tensor:
    """Any mix of pruned (-1), single and merged channels."""
    size = draw(st.integers(2, 12))
    clusters = draw(st.integers(1, size))
    rest = draw(st.lists(st.integers(-1, clusters - 1), min_size=size - clusters, max_size=size - clusters))
    order = draw(st.permutations(list(range(clusters)) + rest))
    return torch.tensor(order)


@given(assignments())
@settings(deadline=None, max_examples=60)
def test_projector_is_symmetric_and_idempotent(assignment) -> None:
    matrix = membership(assignment)
    found = projector(matrix)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-14)
    torch.testing.assert_close(found @ found, found, rtol=0, atol=1e-14)
    assert float(found.trace()) == pytest.approx(matrix.shape[1])


@given(assignments(), seeds)
@settings(deadline=None, max_examples=60)
def test_projection_of_rows_is_the_projector_times_the_rows(assignment, seed) -> None:
    rows = torch.randn(len(assignment), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(project(rows, assignment), projector(membership(assignment)) @ rows)


@given(assignments(), seeds)
@settings(deadline=None, max_examples=60)
def test_error_against_deviations_from_the_means(assignment, seed) -> None:
    rows = torch.randn(len(assignment), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = rows[assignment < 0].square().sum()
    for cluster in range(int(assignment.max()) + 1):
        members = rows[assignment == cluster]
        expected = expected + (members - members.mean(0)).square().sum()
    assert reconstruction_error(rows, membership(assignment)) == pytest.approx(float(expected), rel=1e-10, abs=1e-12)


@given(st.integers(3, 12), st.data(), seeds)
@settings(deadline=None, max_examples=60)
def test_folding_with_one_cluster_more_is_never_worse_than_pruning(size, data, seed) -> None:
    """Theorem of "Cut Less, Fold More": all pruned rows in one extra cluster; k-means is at least as good."""
    kept = data.draw(st.integers(1, size - 2))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, 4, dtype=torch.float64, generator=generator)
    pruned = torch.full((size,), -1)
    pruned[torch.randperm(size, generator=generator)[:kept]] = torch.arange(kept)
    folded = torch.where(pruned < 0, kept, pruned)
    pruning = reconstruction_error(rows, membership(pruned))
    folding = reconstruction_error(rows, membership(folded))
    assert folding <= pruning + 1e-12
    start = torch.stack([rows[folded == cluster].mean(0) for cluster in range(kept + 1)]).numpy()
    means = KMeans(kept + 1, init=start, n_init=1).fit(rows.numpy())
    assert means.inertia_ <= folding + 1e-9


def test_least_squares_projector_against_lstsq() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (
        torch.randn(500, 6, dtype=torch.float64, generator=generator) @ torch.randn(6, 6, generator=generator).double()
    )
    weight = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    matrix = membership(torch.tensor([0, 1, 0, -1, 2, 1]))
    expected = torch.linalg.lstsq(values @ matrix, values @ weight.T).solution.T @ matrix.T
    found = weight @ least_squares_projector(values.T @ values / 500, matrix, ridge=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("labels", [[0, 2, 0], [-1, -1], []])
def test_empty_clusters_are_refused(labels) -> None:
    with pytest.raises(ValueError, match="expected the clusters 0 to k - 1"):
        membership(torch.tensor(labels, dtype=torch.int64))
