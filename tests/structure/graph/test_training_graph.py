"""Networks that compute more in training than in evaluation: both are read, so that training goes on."""

import warnings
from copy import deepcopy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import lightning_fold as lf
from benchmarks.networks import error_of, estimate_statistics, training_step
from lightning_fold.rewrites.channels.widths import find_prunable_groups
from lightning_fold.rewrites.reduction.budget.cost_model import cost_model
from lightning_fold.structure.graph.trace import trace


class Auxiliary(nn.Module):
    """Two layers, each read by a head of its own in training; dropout, attention dropout and stochastic depth."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)
        self.norm, self.depth, self.drop = nn.BatchNorm2d(8), StochasticDepth(0.5, "row"), nn.Dropout(0.3)
        self.auxiliary = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.scores, self.head = nn.Linear(5, 4), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.norm(self.first(x)))
        early = x
        x = F.relu(self.depth(self.second(x))).flatten(2).transpose(1, 2)
        rate = 0.1 if self.training else 0.0
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=rate)
        x = F.dropout(x, 0.2, training=self.training).mean(1)
        out = self.head(self.drop(x))
        if self.training and self.fails:
            raise ValueError("expected targets")
        return (out, self.scores(self.auxiliary(early))) if self.training else out


def _sparse(model: nn.Module, images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels > 4:
                module.weight[: module.out_channels // 3] = 0
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias)
    estimate_statistics(model, images)
    return model.eval()


def test_channels_that_only_an_auxiliary_head_reads_stay() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    model = _sparse(Auxiliary().double(), images)
    with torch.no_grad():
        model.second.weight[:, [5, 6]] = 0  # 5 and 6 of the first layer go to the auxiliary head alone,
        model.second.weight[:, 7] = 0
        model.auxiliary[0].weight[:, 7] = 0  # 7 to nobody
    dense = deepcopy(model)
    lf.minimize(model, images)
    assert error_of(model, dense, images) <= 1e-12
    assert model.first.out_channels == 8 - 1 - 1  # of the two constant ones, one carries both through zero padding
    assert model.auxiliary[0].in_channels == 6 and model.auxiliary[0].out_channels == 4
    assert training_step(model, images)
    assert lf.minimize(model, images).changes == ()
    for network in (model, dense):  # what the auxiliary head says, in evaluation mode of all layers, is the same, too
        for module in network.modules():
            module.training = bool(module._modules)
    found, expected = (_auxiliary(network, images) for network in (model, dense))
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def _auxiliary(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)[1]


def test_what_both_graphs_compute_is_there_once() -> None:
    model, images = Auxiliary(), torch.randn(2, 3, 6, 6)
    both = trace(model, images)
    names = [both.names.get(node.args[1]) for node in both.graph.nodes if "conv2d" in node.name]
    assert names == ["first.weight", "second.weight", "auxiliary.0.weight"] and len(both.outputs) == 3 - 1
    model.scores = model.auxiliary = nn.Identity()
    alone = trace(model, images)
    assert len(alone.outputs) == 1


def test_training_graph_that_cannot_be_traced_is_told() -> None:
    model, images = Auxiliary(fails=True).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"does not read auxiliary.0.weight.*in training cannot be traced.*targets"):
        lf.minimize(_sparse(model, images), images)


def test_network_that_computes_the_same_in_training_is_traced_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(trace(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), torch.randn(2, 3)).outputs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("network", ["googlenet", "inception_v3", "fcn_resnet50", "deeplabv3_resnet50"])
def test_auxiliary_heads_of_torchvision(network: str) -> None:
    torch.manual_seed(0)
    if "resnet" in network:
        model = getattr(torchvision.models.segmentation, network)(weights=None, weights_backbone=None, aux_loss=True)
    else:
        model = getattr(torchvision.models, network)(weights=None, init_weights=False, aux_logits=True)
    size = 299 if network == "inception_v3" else 64  # smaller images do not fit inception's auxiliary head
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    model = _sparse(model.double(), images)
    dense = deepcopy(model)
    report = lf.minimize(model, images[:2])
    assert report.factor > 1.2 and error_of(model, dense, images[1:]) <= 1e-10
    assert training_step(model, images)


class _Normed(Auxiliary):
    """What only training runs has norms and products of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer_norm, self.batch_norm = nn.Linear(8, 6), nn.LayerNorm(6), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        out = super().forward(x)
        if not self.training:
            return out
        tokens = self.layer_norm(self.tokens(self.batch_norm(self.norm(self.first(x))).flatten(2).transpose(1, 2)))
        return (*out, tokens @ tokens.transpose(1, 2))


_ON_DATA = [
    {"compensate": "least-squares"},
    {"compensate": "bias"},
    {"repair": "data"},
    {"compensate": "least-squares", "keep": 0.6},
]
_BY_DATA = [{"importance": "activation"}, {"importance": "reconstruction"}]


@pytest.mark.parametrize(
    ("method", "options"), [*product([lf.prune, lf.fold], _ON_DATA), *product([lf.prune], _BY_DATA)]
)
def test_layers_that_evaluation_never_calls_are_left_out_of_what_is_seen(method, options) -> None:
    torch.manual_seed(0)
    model, images = _Normed().double(), torch.randn(8, 3, 6, 6, dtype=torch.float64)
    report = method(model, images, batches=[images, images.flip(0)], **options)
    assert report.factor > 1.2 and model(images)[0].isfinite().all()
    assert training_step(model, images)


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_budget_of_flops_is_that_of_evaluation(method) -> None:
    torch.manual_seed(0)
    model, images = _Normed().eval(), torch.randn(2, 3, 6, 6)
    costs = cost_model(model, images, *find_prunable_groups("prune", model, images), flops=True)
    assert sum(cost.full for cost in costs._costs) == costs.total == lf.count_flops(model, images)
    report = method(model, images, keep=0.72, of="flops")
    assert abs(report.flops_after / report.flops_before - 0.72) <= 0.01
