"""Inputs by name: a network that takes them so is rewritten as the one that takes them in order."""

import copy

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.inputs import as_inputs, call, first_examples


class Ordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 8, 3), nn.Linear(4, 8), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, image, context, scale=1.0):
        hidden = self.norm(self.one(image) * scale + self.two(context)[..., None, None])
        return self.out(hidden.relu()).mean((2, 3))


class Named(Ordered):
    def forward(self, *, context, image, scale=1.0):
        return super().forward(image, context, scale)


REWRITES = {
    "minimize": lf.minimize,
    "prune": lambda model, inputs: lf.prune(model, inputs, keep=0.5, of="channels"),
    "prune to a budget, compensated": lambda model, inputs: lf.prune(
        model, inputs, keep=0.6, of="flops", compensate="least-squares"
    ),
    "fold": lambda model, inputs: lf.fold(model, inputs, keep=0.5, of="channels"),
    "factorize": lambda model, inputs: lf.factorize(model, inputs, keep=0.9, of="flops"),
    "release": lambda model, inputs: lf.release(model, max_drift=0.1, batches=[inputs], example_inputs=inputs),
}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    ordered = Ordered().double()
    with torch.no_grad():
        for row in (1, 4):
            ordered.one.weight[row], ordered.two.weight[row] = 0, 0
    named = Named().double()
    named.load_state_dict(ordered.state_dict())
    image, context = torch.randn(6, 3, 8, 8).double(), torch.randn(6, 4).double()
    return ordered, named, (image, context, 2.0), {"image": image, "context": context, "scale": 2.0}


@pytest.mark.parametrize("name", list(REWRITES))
def test_rewrites_do_the_same(pair, name):
    ordered, model, in_order, by_name = pair
    dense = copy.deepcopy(model)
    expected, report = REWRITES[name](ordered, in_order), REWRITES[name](model, by_name)
    torch.testing.assert_close(model.state_dict(), ordered.state_dict())
    assert (report.parameters_after, report.flops_after) == (expected.parameters_after, expected.flops_after)
    assert name == "release" or report.parameters_after < lf.count_parameters(dense)
    if name == "minimize":
        torch.testing.assert_close(model.eval()(**by_name), dense.eval()(**by_name), rtol=1e-12, atol=1e-12)


def test_groups_counts_and_times(pair):
    ordered, model, in_order, by_name = pair
    found, expected = lf.channel_groups(model, by_name), lf.channel_groups(ordered, in_order)
    assert sorted(g.size for g in found) == sorted(g.size for g in expected)
    assert lf.count_flops(model, by_name) == lf.count_flops(ordered, in_order)
    latency = lf.measure_latency(model, by_name, runs=2, warmup=0)
    assert (latency.batch, latency.dtype) == (6, "float64")


def test_calls(pair):
    ordered, model, in_order, by_name = pair
    torch.testing.assert_close(call(model.eval(), by_name), call(ordered.eval(), in_order), rtol=0, atol=0)
    zero = {"out.weight": torch.zeros_like(model.out.weight)}
    torch.testing.assert_close(call(model, by_name, zero), model.out.bias.expand(6, 5))
    few = first_examples(by_name, 2)
    assert (few["image"].shape[0], few["context"].shape[0], few["scale"]) == (2, 2, 2.0)


def test_replaced_tensors_are_gone_afterwards_and_reach_every_place():
    torch.manual_seed(0)
    shared, head = nn.Linear(4, 4), nn.Linear(4, 4)
    head.weight = shared.weight
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.ReLU()), head)
    x, before = torch.randn(2, 4), dict(model.named_parameters(remove_duplicate=False))
    found = call(model, x, {"0.0.weight": 2 * shared.weight})
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in after)
    with torch.no_grad():
        shared.weight *= 2
    assert torch.equal(found, model(x))


def test_errors_name_the_inputs(pair, tmp_path):
    _, model, _, by_name = pair
    with pytest.raises(
        ValueError, match=r"example inputs image=\(2, 3, 8, 8\).*a dict for model\(\*\*example_inputs\)"
    ):
        lf.channel_groups(model, {"image": by_name["image"]})
    with pytest.raises(ValueError, match=r"found inputs by name \(image, context, scale\)"):
        lf.export(model, by_name, tmp_path / "small.onnx")
    assert as_inputs(by_name["image"]) == (by_name["image"],)


class Masked(nn.Module):
    """Tokens (examples, T, 8) and a mask (T, T) for all examples."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x, mask):
        mixed = nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return self.out(self.embed(mixed).relu())


@pytest.mark.parametrize("mask", [torch.randn(40, 40), torch.ones(40, 40).tril().bool()])
@pytest.mark.parametrize("examples", [4, 64])
@pytest.mark.parametrize("of", ["parameters", "flops"])
def test_tensors_without_a_batch_dimension_stay(mask, examples, of):
    torch.manual_seed(0)
    model, x = Masked(), torch.randn(examples, 40, 8)
    assert torch.equal(first_examples((x, mask), 3)[1], mask)
    count = lf.count_parameters if of == "parameters" else lambda net: lf.count_flops(net, (x, mask))
    dense, before = copy.deepcopy(model), count(model)
    lf.prune(model, (x, mask), keep=0.8, of=of, compensate="least-squares")
    assert abs(count(model) / before - 0.8) <= 0.03
    lf.prune(dense, (x, mask), keep=0.8, of=of, batches=[(x, mask)] * 3)
    assert abs(count(dense) / before - 0.8) <= 0.03
