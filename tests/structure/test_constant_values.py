"""Values of the run on constants: NaN says that something depends on the input."""

import torch

from lightning_fold.structure.constant_values import (
    UNKNOWN,
    along,
    channel_constants,
    depends,
    has_unknown,
    tidy,
    unknown,
)
from lightning_fold.structure.graph.trace import trace
from tests.structure.reading import Apply


def test_channel_is_one_number_where_it_is_the_same_everywhere() -> None:
    value = torch.tensor([[[1.0, 1], [2, 3]], [[1, 1], [2, 2]]])  # (examples, channels, positions)
    found = channel_constants(value, 1)
    assert found[0] == 1 and found[1].isnan()
    assert torch.equal(channel_constants(torch.full((), 4.0).expand(2, 3, 5), 1), torch.full((3,), 4.0))
    assert channel_constants(torch.tensor([[1.0, torch.nan]]), 0).isnan().all()


def test_channels_of_what_is_no_float_are_not_known() -> None:
    assert channel_constants(torch.ones(2, 2, dtype=torch.int64), 1) is None
    assert channel_constants(UNKNOWN, 0) is None


def test_unknown_value_has_the_shape_of_the_node_and_holds_one_number() -> None:
    graph = trace(Apply(lambda m, x: (x.max(1)[0], x.argmax(1))), torch.randn(2, 3)).graph
    values = [unknown(node) for node in graph.nodes if node.op == "call_function"]
    flat = [leaf for value in values for leaf in (value if isinstance(value, (list, tuple)) else [value])]
    floats = [value for value in flat if value is not UNKNOWN]
    assert len(floats) < len(flat)
    assert all(value.shape == (2,) and value.stride() == (0,) and value.isnan().all() for value in floats)


def test_unknown_is_found_however_it_is_nested() -> None:
    assert has_unknown((1, [UNKNOWN]), {}) and has_unknown((), {"a": {"b": UNKNOWN}})
    assert not has_unknown((torch.full((2,), torch.nan),), {"a": None})


def test_dependence_is_any_nan() -> None:
    assert depends(torch.tensor([1.0, torch.nan])) and depends(torch.full((), torch.nan).expand(3, 3))
    assert not depends(torch.ones(2)) and not depends(torch.ones(2, dtype=torch.int64)) and not depends(None)


def test_tidy_keeps_the_values_and_along_repeats_them() -> None:
    value = torch.tensor([[1.0, torch.nan], [1.0, torch.nan]])
    found = tidy(value)
    assert found.stride()[0] == 0 and torch.equal(found.nan_to_num(-1), value.nan_to_num(-1)) and tidy(None) is None
    repeated = along(torch.tensor([1.0, 2.0]), 1, torch.Size((3, 2, 4)))
    assert torch.equal(repeated, torch.tensor([1.0, 2.0])[None, :, None].repeat(3, 1, 4))
