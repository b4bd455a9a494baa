"""Options: what is asked for is checked before anything is touched."""

from typing import Any

import pytest
import torch

from lightning_fold.errors import ArgumentError
from lightning_fold.rewrites.reduction.options import Options
from lightning_fold.rewrites.reduction.recovery.repairs.fold_ar import FoldAR
from lightning_fold.rewrites.reduction.recovery.repairs.repair import NoRepair
from lightning_fold.rewrites.reduction.recovery.repairs.statistics import Statistics

_PLAIN: dict[str, Any] = {
    "compensate": "none", "repair": "none", "batches": None, "calibration": "auto", "seed": 0, "skip": [],
}  # fmt: skip


def _options(*, merging: bool = True, **changed: Any) -> Options:
    return Options.of("fold", **(_PLAIN | changed), merging=merging)


@pytest.mark.parametrize(("name", "kind"), [("none", NoRepair), ("data-free", FoldAR), ("data", Statistics)])
def test_names_stand_for_repairs(name: str, kind: type) -> None:
    assert type(_options(repair=name, batches=[torch.ones(1)]).repair) is kind
    own = kind()
    assert _options(repair=own, batches=[torch.ones(1)]).repair is own


def test_a_loader_is_read_once_into_a_list() -> None:
    loader = (torch.full((1,), float(i)) for i in range(3))
    found = _options(batches=loader).batches
    assert found is not None and [float(batch) for batch in found] == [0, 1, 2]
    assert list(loader) == [] and _options().batches is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"skip": "head"}, r"fold.*skip='head'.*\['head'\]"),
        ({"compensate": "all"}, r"fold.*compensate.*all.*least-squares"),
        ({"repair": "data"}, r"fold.*repair='data'.*batches"),
        ({"repair": "data", "batches": []}, r"fold.*batches"),
        ({"batches": []}, r"fold.*batches=\[\]"),
        ({"repair": "data-free", "merging": False}, r"fold.*repair='data-free'"),
        ({"repair": "magic"}, r"fold.*repair.*magic"),
        ({"calibration": "magic"}, r"fold.*calibration.*magic"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(changed: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        _options(**changed)


@pytest.mark.parametrize("changed", [{"repair": 3}, {"calibration": 3}])
def test_other_types_are_refused(changed: dict) -> None:
    with pytest.raises(TypeError, match=next(iter(changed))):
        _options(**changed)
