"""Channels over heads: the shapes they stand in, and heads that leave as a whole."""

import pytest
import torch
from torch import Tensor

from lightning_fold.structure.labels import Blocks, Labels, Size
from lightning_fold.structure.rules.heads import agree_on_sizes, by_head, heads_dim, inner_dim, tie_whole_heads


@pytest.mark.parametrize(
    ("shape", "heads", "inner"),
    [((1, 2, 1, 3), 1, 3), ((1, 1, 2, 3), 2, 3), ((1, 2, 3, 1), 1, 2), ((2, 2, 1, 3), None, 3)],
)
def test_dimensions_are_read_from_the_sizes(shape: tuple[int, ...], heads: int | None, inner: int) -> None:
    over_heads = torch.empty(shape)
    assert (heads_dim(over_heads), inner_dim(over_heads)) == (heads, inner)


def test_by_head_has_a_row_for_each_head() -> None:
    plain = torch.arange(6).reshape(2, 3)
    for over_heads in (plain[None, :, None], plain[None, :, :, None], plain.reshape(1, 1, 2, 3)):
        assert torch.equal(by_head(over_heads), plain)
    two = torch.arange(12).reshape(2, 2, 1, 3)
    assert by_head(two).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def _labels(*blocks: Blocks) -> Labels:
    return Labels(blocks=list(blocks), count=13)


def _partition(labels: Labels, of: Tensor) -> list[list[int]]:
    groups = labels.groups()[of]
    return sorted(of[groups == group].tolist() for group in groups.unique())


QUERIES, VALUES = torch.arange(1, 7).reshape(2, 3), torch.arange(7, 11).reshape(2, 2)


def test_head_of_fixed_size_is_one_channel_and_takes_its_other_side_along() -> None:
    fixed = Blocks((QUERIES,), "a", "fixed", fixed_size=True)
    both = Blocks((QUERIES, VALUES), "a", "leave together")
    labels = _labels(both, fixed)
    tie_whole_heads(labels)
    assert _partition(labels, QUERIES.flatten()) == [[1, 2, 3], [4, 5, 6]]
    assert _partition(labels, VALUES.flatten()) == [[7], [8], [9], [10]]  # of these each may leave by itself
    labels = _labels(both, fixed, Blocks((VALUES,), "a", "fixed", fixed_size=True))
    tie_whole_heads(labels)
    assert _partition(labels, torch.arange(1, 11)) == [[1, 2, 3, 7, 8], [4, 5, 6, 9, 10]]


def test_without_a_fixed_size_nothing_is_tied() -> None:
    labels = _labels(Blocks((QUERIES, VALUES), "a", "leave together"))
    tie_whole_heads(labels)
    assert labels.ties == []


def test_reshapes_that_ask_one_attribute_keep_equally_many() -> None:
    other = QUERIES + 6
    labels = Labels(
        sizes=[Size("a", "head_dim", QUERIES, "width", 3), Size("a", "head_dim", other, "width", 3)], count=13
    )
    agree_on_sizes(labels)
    (blocks,) = labels.blocks
    assert torch.equal(blocks.sides[0], torch.cat([QUERIES, other]))
    for sizes in (labels.sizes[:1], [labels.sizes[0], Size("b", "head_dim", other, "width", 3)]):
        apart = Labels(sizes=sizes, count=13)
        agree_on_sizes(apart)
        assert apart.blocks == []
