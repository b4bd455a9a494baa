"""What a network costs at every size: against the network of that size, and torch's counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lightning_fold as lf
from lightning_fold.rewrites.channels.widths import find_prunable_groups
from lightning_fold.rewrites.reduction.budget.cost_model import cost_model
from tests.zoo import ZOO, build

ATTENTION = ["attention_fused", "attention_apart", "attention_by_hand", "attention_single"]


@pytest.mark.parametrize("name", ["residual", "dense", "grouped", "shuffle", "excited", "option_a", *ATTENTION])
@pytest.mark.parametrize("flops", [False, True])
def test_predicted_cost_is_the_cost_of_the_pruned_network(name: str, flops: bool) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    structure, widths = find_prunable_groups("prune", model, inputs)
    costs = cost_model(model, inputs, structure, widths, flops=flops)
    inputs = tuple(value[:2] for value in inputs)  # as many as the graph is traced with
    report = lf.prune(model, inputs, keep=0.5, of="channels")
    kept = [max(round(0.5 * width.size), 1) for width in widths]
    found = report.flops_after if flops else report.parameters_after
    assert costs.cost(kept) == pytest.approx(found, rel=1e-9)


def _upscaling(stride: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 32, 4, stride=stride), nn.ReLU(), nn.Conv2d(32, 2, 1))


@pytest.mark.parametrize("stride", [1, 4])
def test_weights_are_priced_as_torch_counts_them(stride: int) -> None:
    """A transposed convolution multiplies each weight once for each place of its input."""
    model, x = _upscaling(stride), torch.randn(2, 3, 8, 8)
    costs = cost_model(model, x, *find_prunable_groups("prune", model, x), flops=True)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert sum(cost.full for cost in costs._costs) == counter.get_total_flops()


@pytest.mark.parametrize("flops", [False, True])
def test_what_a_bundle_saves_is_the_difference_of_the_costs(flops: bool) -> None:
    model, inputs = build("attention_fused"), ZOO["attention_fused"].inputs()
    costs = cost_model(model, inputs, *find_prunable_groups("prune", model, inputs), flops=flops)
    full = [width.size for width in costs.widths]
    assert costs.cost(full) == costs.total
    for bundle in costs.bundles:
        less = [size - 2 * (i in bundle) for i, size in enumerate(full)]
        assert costs.saved(bundle, full, 2) == pytest.approx(costs.cost(full) - costs.cost(less), rel=1e-9)
        assert costs.saved(bundle, full, 2) > 0


def test_parameters_of_a_chain_are_counted_by_hand() -> None:
    model, x = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    costs = cost_model(model, x, *find_prunable_groups("prune", model, x), flops=False)
    for a in range(1, 7):
        for b in range(1, 5):
            assert costs.cost([a, b]) == pytest.approx((3 + 1) * a + (a + 1) * b + (b + 1) * 2)
