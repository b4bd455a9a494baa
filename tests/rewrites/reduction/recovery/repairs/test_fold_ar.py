"""Fold-AR as a repair: factors of merged BatchNorms, where they help."""

from itertools import chain, combinations

import pytest
import torch
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.errors import ArgumentError
from lightning_fold.rewrites.channels.widths import find_prunable_groups
from lightning_fold.rewrites.reduction.cut import plan_cut
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.rewrites.reduction.recovery.repairs.fold_ar import FoldAR, _helpful
from lightning_fold.rewrites.reduction.selector import ChannelSelector
from lightning_fold.surgery.editor import NetworkEditor
from lightning_fold.surgery.transaction import Surgery


def _network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4, 5))
    return model.double().eval(), torch.randn(6, 5, dtype=torch.float64)


@pytest.mark.parametrize(("assignment", "size"), [([0, 0, 0, 1], 3), ([0, 1, 1, 2], 2)])
def test_orthogonal_rows_of_a_cluster_need_the_root_of_their_number(assignment: list[int], size: int) -> None:
    model, x = _network()
    structure, widths = find_prunable_groups("fold", model, x)
    with Surgery(model) as surgery:
        cut = plan_cut(surgery, structure, ChannelSelector(), widths, [torch.tensor(assignment)])
        (factors,) = FoldAR().before_cut(surgery, cut).values()
    merged = max(set(assignment), key=assignment.count)
    first = assignment.index(merged)
    assert factors[first].item() == pytest.approx(size**0.5)
    assert sorted(factors.tolist())[:-1] == [1.0] * 3


def test_nothing_merged_is_nothing_to_do() -> None:
    model, x = _network()
    structure, widths = find_prunable_groups("fold", model, x)
    with Surgery(model) as surgery:
        cut = plan_cut(surgery, structure, ChannelSelector(), widths, [torch.tensor([0, 1, 2, -1])])
        assert FoldAR().before_cut(surgery, cut) == {}
        recovery = Recovery(cut, None)
        FoldAR().after_cut(surgery, recovery, {})
    assert recovery.notes == []


@pytest.mark.parametrize("seed", range(6))
def test_factors_that_help_by_themselves_are_the_best_of_all_subsets(seed: int) -> None:
    """The error is a sum over the scales, so each can be judged alone."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({name: nn.BatchNorm1d(3) for name in "abc"}).double()
    names = [f"{name}.weight" for name in "abc"]
    wanted = {name: 0.5 + 2 * torch.rand(3, dtype=torch.float64) for name in names}
    factors = {name: 0.5 + 2 * torch.rand(3, dtype=torch.float64) for name in names}
    editor = NetworkEditor(model)

    def error_with(chosen: tuple[str, ...]) -> float:
        one = torch.ones(3, dtype=torch.float64)
        return sum(float(((factors[n] if n in chosen else one) - wanted[n]).square().sum()) for n in names)

    def error() -> float:
        return sum(float((editor.tensor(name) - wanted[name]).square().sum()) for name in names)

    helpful, (nowhere, everywhere, least) = _helpful(editor, factors, error)
    subsets = chain.from_iterable(combinations(names, count) for count in range(4))
    assert tuple(helpful) == min(subsets, key=error_with)
    assert (nowhere, everywhere) == pytest.approx((error_with(()), error_with(tuple(names))))
    assert least == pytest.approx(error_with(tuple(helpful)))


def test_it_is_refused_where_channels_only_leave() -> None:
    model, x = _network()
    with pytest.raises(ArgumentError, match=r"prune.*repair"):
        lf.prune(model, x, repair="data-free")
