"""fold: identical channels merge exactly, clusters take mean and sum, Fold-AR at its extremes."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_fold as lf
from lightning_fold.layers import CompensatedNorm
from lightning_fold.rewrites.channels.homogeneity import homogeneous
from lightning_fold.rewrites.channels.widths import find_prunable_groups
from tests.zoo import ZOO, Head, build, error_of, run


def _duplicated() -> tuple[nn.Module, Tensor]:
    """Every hidden channel of a convolutional network twice, with different readers."""
    torch.manual_seed(0)
    model = build("conv_norm")
    with torch.no_grad():
        for i in (0, 3, 6):
            conv, norm = model[i], model[i + 1]
            half = conv.out_channels // 2
            for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor[half:] = tensor[:half]
    return model, ZOO["conv_norm"].inputs()[0]


@pytest.mark.parametrize("repair", ["data-free", "none"])
def test_identical_channels_merge_exactly(repair) -> None:
    model, x = _duplicated()
    dense = deepcopy(model)
    report = lf.fold(model, x, keep=0.5, of="channels", repair=repair)
    assert [model[i].out_channels for i in (0, 3, 6)] == [4, 5, 4] and report.factor > 2.5
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
    larger = torch.randn(2, 3, 13, 11, dtype=torch.float64)
    assert error_of(run(model, (larger,)), run(dense, (larger,))) <= 1e-12


@pytest.mark.parametrize("wanted", [12, 8])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_channels_written_alike_merge_before_all_others(seed: int, normed: bool, wanted: int) -> None:
    """16 channels in 8 pairs with readers of their own: as many merge as asked for, all of them exactly."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(16) if normed else nn.Identity()
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 5, 3)).double().eval()
    with torch.no_grad():
        tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
        for name in set(tensors) - {"num_batches_tracked"}:
            tensors[name].uniform_(0.5, 2)
        for tensor in [model[0].weight, model[0].bias, *(t for t in tensors.values() if t.dim())]:
            tensor[8:] = tensor[:8]
    x, dense = torch.randn(4, 3, 8, 8, dtype=torch.float64), deepcopy(model)
    lf.fold(model, x, keep=wanted / 16, of="channels", repair="none")
    assert model[0].out_channels == wanted
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-13


def orthogonal_filters(*after: nn.Module) -> nn.Sequential:
    """Three filters that have nothing in common, a BatchNorm, and a layer that sums what comes of them."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), *after, nn.Conv2d(3, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3)[..., None, None])
        model[-1].weight.fill_(1.0)
    return model.double().eval()


def test_orthogonal_channels_get_their_variance_back() -> None:
    """The mean of three has a third of the variance; behind a ReLU and a mean over places that is seen in outputs."""
    torch.manual_seed(0)
    model, x = orthogonal_filters(nn.ReLU(), nn.AdaptiveAvgPool2d(1)), torch.randn(100, 3, 8, 8, dtype=torch.float64)
    report = lf.fold(model, x, keep=0.4, of="channels", repair="data-free")
    assert model[0].out_channels == 1
    assert float(model[:2](x).detach().std()) == pytest.approx(1.0, abs=0.03)
    assert not report.notes


@pytest.mark.parametrize("with_data", [False, True])
def test_fold_ar_is_undone_where_it_makes_outputs_worse(with_data: bool) -> None:
    """What is only summed keeps its function without it: the sum of three is three times their mean."""
    torch.manual_seed(0)
    model, x = orthogonal_filters(), torch.randn(100, 3, 8, 8, dtype=torch.float64)
    expected = run(model, (x,))
    report = lf.fold(model, x, keep=0.4, of="channels", repair="data-free", batches=[x] if with_data else None)
    assert model[0].out_channels == 1
    assert error_of(run(model, (x,)), expected) <= 1e-12
    (note,) = report.notes
    assert "Fold-AR was undone at 1 of 1 BatchNorms (1)" in note
    assert ("held-out data" if with_data else "noise") in note


def test_fold_ar_stays_at_the_batch_norms_where_it_helps() -> None:
    """Two branches, one of each kind: only the one behind the ReLU is rescaled."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pooled = orthogonal_filters(nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.summed = orthogonal_filters()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.pooled(x), self.summed(x)

    torch.manual_seed(0)
    model, x = Branches(), torch.randn(100, 3, 8, 8, dtype=torch.float64)
    report = lf.fold(model.double().eval(), x, keep=0.4, of="channels")
    assert float(model.pooled[:2](x).detach().std()) == pytest.approx(1.0, abs=0.03)
    assert float(model.summed[:2](x).detach().std()) == pytest.approx(3**-0.5, abs=0.03)
    assert "1 of 2 BatchNorms (summed.1)" in report.notes[0]


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo_runs_and_optimizers_follow(name: str) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    optimizer = torch.optim.Adam(model.parameters())
    report = lf.fold(model, inputs, keep=0.6, of="channels", optimizers=[optimizer])
    shared = [kept for kept in report.kept if "shares its statistics" in kept.reason]
    assert bool(shared) == (name in ("group_norm", "one_group"))
    assert report.parameters_after < report.parameters_before or shared
    assert run(model, inputs).isfinite().all()
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("name", ["mlp", "residual", "flatten", "excited", "two_inputs", "two_outputs", "dense"])
def test_channels_doubled_through_every_connection_fold_back(name: str) -> None:
    """Give each free group a twin: the same rows, and columns of half the size for both. Folding restores the rest."""
    model, inputs = build(name), ZOO[name].inputs()
    with torch.no_grad():
        for group in lf.channel_groups(model, inputs):
            if group.pinned is None and group.size > 1:
                half = group.size // 2
                for member in group.members:
                    moved = model.get_parameter(member.tensor) if member.dim else _tensor(model, member.tensor)
                    moved = moved.movedim(member.dim, 0)
                    moved[member.indices[half : 2 * half]] = moved[member.indices[:half]].clone()
    expected, before = run(model, inputs), sum(p.numel() for p in model.parameters())
    report = lf.fold(model, inputs, keep=0.55, of="channels")
    assert report.parameters_after < 0.75 * before
    assert error_of(run(model, inputs), expected) <= 1e-11


def _tensor(model: nn.Module, name: str) -> Tensor:
    return dict(model.named_buffers()).get(name, dict(model.named_parameters()).get(name))


def test_moments_are_averaged_over_each_cluster() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[2:] = tensor[:2]
        model[2].weight[:, 2:] = model[2].weight[:, :2]
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    with torch.no_grad():  # the step moved the copies apart
        for tensor in (model[0].weight, model[0].bias):
            tensor[2:] = tensor[:2]
        model[2].weight[:, 2:] = model[2].weight[:, :2]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    lf.fold(model, torch.randn(2, 3, dtype=torch.float64), keep=0.5, of="channels", optimizers=[optimizer])
    found = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
    torch.testing.assert_close(found[0], (moments[0][:2] + moments[0][2:]) / 2)
    torch.testing.assert_close(found[2], (moments[2][:, :2] + moments[2][:, 2:]) / 2)


def test_seed_makes_it_reproducible() -> None:
    one, two = build("residual"), build("residual")
    for model in (one, two):
        lf.fold(model, ZOO["residual"].inputs(), keep=0.5, of="channels", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"fold\(keep=0.0\)"):
        lf.fold(build("mlp"), ZOO["mlp"].inputs(), keep=0.0, of="channels")
    with pytest.raises(ValueError, match="expected one of 'none', 'data-free', 'data', or the path"):
        lf.fold(build("mlp"), ZOO["mlp"].inputs(), repair="full")
    with pytest.raises(ValueError, match="at least one hidden width"):
        lf.fold(Head(3), torch.randn(2, 3, 4, 4))


def test_channels_that_differ_by_a_positive_factor_merge_exactly_through_relu() -> None:
    """The factor stands in the layer's rows for some channels, in BatchNorm's for others."""
    model, x = _duplicated()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for i in (0, 3, 6):
            conv, norm, half = model[i], model[i + 1], model[i].out_channels // 2
            a, b = (torch.rand(2, half, generator=generator, dtype=torch.float64) * 3 + 0.2).unbind()
            conv.weight[half:] *= a[:, None, None, None]
            norm.running_mean[half:] *= a
            norm.running_var[half:] = (norm.running_var[half:] + norm.eps) * a.square() - norm.eps
            norm.weight[half:] *= b
            norm.bias[half:] *= b
    dense = deepcopy(model)
    for module in model.modules():
        assert not isinstance(module, (nn.GELU, nn.SiLU))
    lf.fold(model, x, keep=0.5, of="channels")
    assert [model[i].out_channels for i in (0, 3, 6)] == [4, 5, 4]
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-9


NORMED = ["gate", "stream", "stream_rms", "conv_stream", "words"]


@pytest.mark.parametrize("name", ["gated", "grouped", "shuffle", "attention_fused", "attention_by_hand", *NORMED])
def test_doubled_gates_groups_heads_and_streams_fold_back(name: str) -> None:
    model, inputs = build(name), ZOO[name].inputs()
    _double(model, inputs)
    expected, before = run(model, inputs), sum(p.numel() for p in model.parameters())
    lf.fold(model, inputs, keep=0.55, of="channels")
    assert sum(p.numel() for p in model.parameters()) < 0.6 * before
    assert error_of(run(model, inputs), expected) <= 1e-12
    norms = [module for module in model.modules() if isinstance(module, CompensatedNorm)]
    assert len(norms) == (2 if name == "gate" else 0)  # the others have twins for all: each counts as often


def _double(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Within every block (head, group, all of a gate) each channel gets a twin; one is left over in odd ones."""
    _, widths = find_prunable_groups("fold", model, inputs)
    with torch.no_grad():
        for width in widths:
            for member in width.group.members:
                moved = _tensor(model, member.tensor).movedim(member.dim, 0)
                for block in width.blocks:
                    half = len(block) // 2
                    ours, twins = member.indices[block[:half]], member.indices[block[half : 2 * half]]
                    moved[twins] = moved[ours].clone()
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels:
                half = module.weight.shape[1] // 2
                module.weight[:, half : 2 * half] = module.weight[:, :half]


def test_norms_of_merged_channels_shrink_on_and_are_rebuilt() -> None:
    """A stream is folded, folded again and minimized: norms go on counting every channel there was."""
    model, inputs = build("gate"), ZOO["gate"].inputs()
    _double(model, inputs)
    lf.fold(model, inputs, keep=0.55, of="channels")
    writers, readers = (model.embed, model.down), (model.gate, model.up, model.head)
    with torch.no_grad():  # twins again, in the stream and in the MLP
        for tensor in (model.gate.weight, model.gate.bias, model.up.weight, model.up.bias, model.down.weight.T):
            tensor[1] = tensor[0]
        for tensor in [t for writer in writers for t in (writer.weight, writer.bias)] + [n.weight for n in model.norms]:
            tensor[1] = tensor[0]
        for reader in readers:
            reader.weight[:, 1] = reader.weight[:, 0]
    expected = run(model, inputs)
    lf.fold(model, inputs, keep=0.8, of="channels")
    assert model.embed.out_features == 4 and error_of(run(model, inputs), expected) <= 1e-12
    with torch.no_grad():  # a constant that nobody reads
        for writer in writers:
            writer.weight[3] = 0
        for reader in readers:
            reader.weight[:, 3] = 0
    expected = run(model, inputs)
    lf.minimize(model, inputs)
    norm = model.norms[0]
    assert isinstance(norm, CompensatedNorm) and norm.removed > 0 and float(norm.counts.sum()) + norm.removed == 9
    assert error_of(run(model, inputs), expected) <= 1e-12
    fresh = build("gate")
    lf.rebuild(fresh, lf.describe(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh, inputs), run(model, inputs))


def test_norm_that_cannot_count_merged_channels_keeps_them() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(torch.relu(self.norm(self.embed(x)))))

    model, x = Twice(), torch.randn(5, 6)
    report = lf.fold(model, x, keep=0.5, of="channels")
    assert [kept.reason for kept in report.kept] == ["norm is a norm that cannot count merged channels"]
    assert report.changes == ()


def test_statistics_estimated_again_are_those_of_the_channels_that_were_merged() -> None:
    model, x = _duplicated()
    dense, batch = deepcopy(model), torch.randn(64, *x.shape[1:], dtype=x.dtype)
    lf.fold(model, x, keep=0.5, of="channels", repair="none")
    for network in (model, dense):
        lf.repair(network, [batch])
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-3  # the eps of a BatchNorm is not rescaled


def test_batch_norm_expects_the_spread_of_merged_channels() -> None:
    """Rows at right angles: on white noise their mean varies half as much as each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64))[0].T)
        model[1].weight.fill_(0.7)
    x = torch.randn(40_000, 8, dtype=torch.float64)
    lf.fold(model, x[:2], keep=0.5, of="channels", repair="none")
    torch.testing.assert_close(model[1].running_var, model[0](x).var(dim=0), rtol=0.05, atol=0)


class _Meets(nn.Module):
    """Channels that differ by a positive factor meet something else before they are read."""

    def __init__(self, meet) -> None:
        super().__init__()
        self.meet, self.write, self.read = meet, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)
        self.shift = nn.Parameter(torch.tensor([0.5]))
        self.map, self.position = nn.Conv2d(3, 1, 1), nn.Parameter(torch.randn(1, 1, 6, 6))
        self.mix, self.mix_only = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(F.relu(self.meet(self, self.write(x), x)))


_NOT_SCALED = {
    "parameter": lambda m, h, x: h + m.shift,
    "constant": lambda m, h, x: h - torch.tensor(0.5),
    "subtracted from": lambda m, h, x: torch.tensor(0.5) - h,
    "map": lambda m, h, x: h + m.map(x),
    "position": lambda m, h, x: m.position + h,
    "pad": lambda m, h, x: F.pad(h, (1, 1, 1, 1), value=0.5),
    "constant pad": lambda m, h, x: torch.constant_pad_nd(h, (1, 1), 0.5),
    "bias of another dimension": lambda m, h, x: m.mix(h),
    "rounded": lambda m, h, x: h.to(torch.int64).to(h.dtype),
}
_SCALED = {
    "itself": lambda m, h, x: h + h - h.neg(),
    "pad": lambda m, h, x: F.pad(h, (1, 1, 1, 1)),
    "constant pad": lambda m, h, x: torch.constant_pad_nd(h, (1, 1)),
    "other dimension": lambda m, h, x: m.mix_only(h),
}


@pytest.mark.parametrize("meet", _NOT_SCALED)
def test_what_is_not_scaled_with_the_channels_it_meets(meet: str) -> None:
    """Channels written alike still merge exactly; those that differ by a factor are not taken for alike."""
    for factor in (1.0, 3.0):
        model, x = _alike_but_for(factor, _NOT_SCALED[meet])
        dense = deepcopy(model)
        lf.fold(model, x, keep=0.5 if factor == 1 else 1.0, of="channels")
        assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12
        structure, (width,) = find_prunable_groups("fold", dense, x)
        assert not homogeneous(structure)[width.group.ids].any()


@pytest.mark.parametrize("meet", _SCALED)
def test_what_is_scaled_with_the_channels_it_meets(meet: str) -> None:
    model, x = _alike_but_for(3.0, _SCALED[meet])
    dense = deepcopy(model)
    lf.fold(model, x, keep=0.5, of="channels")
    assert model.write.out_channels == 4 and error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


def _alike_but_for(factor: float, meet) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = _Meets(meet).double().eval()
    with torch.no_grad():
        for tensor in (model.write.weight, model.write.bias):
            tensor[4:] = factor * tensor[:4]
    return model, 3 * torch.randn(5, 3, 6, 6, dtype=torch.float64)


def test_weight_called_twice_has_no_rows_to_divide() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.head = nn.Linear(4, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x)))))))

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(16, 4, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias, model.shared.weight):
            tensor[4:] = tensor[:4].clone()
    dense = deepcopy(model)
    lf.fold(model, x, keep=0.5, of="channels")
    assert model.first.out_features == 4 and error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


class _Reads(nn.Module):
    """Channels are read with a weight that is not what a layer holds as it is."""

    def __init__(self, read) -> None:
        super().__init__()
        self.read, self.write = read, nn.Linear(4, 8)
        self.weight, self.other = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(F.relu(self.write(x)), self)


_MOVED = {
    "transposed": lambda h, m: h @ m.weight.t(),
    "cast": lambda h, m: F.linear(h, m.weight.to(h.dtype)),
    "einsum": lambda h, m: torch.einsum("bi,oi->bo", h, m.weight),
    "convolution": lambda h, m: F.conv2d(h[..., None, None], m.weight[..., None, None]).flatten(1),
    "scaled": lambda h, m: F.linear(h, -0.5 * m.weight),
}
_COMPUTED = {
    "product": lambda h, m: F.linear(h, m.weight * m.other),
    "both ways": lambda h, m: F.linear(F.relu(F.linear(F.relu(F.linear(h, m.weight)), m.weight.t())), m.other),
}


@pytest.mark.parametrize(("read", "factor"), [*((read, 1.0) for read in _MOVED), ("cast", 3.0), ("convolution", 3.0)])
def test_columns_are_summed_wherever_they_are_moved(read: str, factor: float) -> None:
    model, x = _twins(_MOVED[read], factor)
    dense = deepcopy(model)
    lf.fold(model, x, keep=0.5, of="channels")
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("read", _COMPUTED)
def test_columns_of_which_no_sum_stands_for_several_stay(read: str) -> None:
    model, x = _twins(_COMPUTED[read], 1.0)
    dense = deepcopy(model)
    report = lf.fold(model, x, keep=0.5, of="channels")
    (why,) = {kept.reason for kept in report.kept}
    assert "which is used in another way" in why if read == "both ways" else "with a weight that it computes" in why
    assert error_of(run(model, (x,)), run(dense, (x,))) <= 1e-12


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_grouped_convolution_with_a_weight_that_is_cast_stays(method) -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(8, 4, 1, 1))
            self.second, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(F.conv2d(F.relu(self.first(x)), self.weight.to(x.dtype), groups=2))
            return self.head(F.relu(self.second(x)))

    model = Grouped().double()
    report = method(model, torch.randn(5, 3, 4, 4, dtype=torch.float64), keep=0.5, of="channels")
    assert model.first.out_channels == 8 and model.second.out_channels == 3
    assert all("grouped convolution whose weight is computed" in kept.reason for kept in report.kept) and report.kept


def _twins(read, factor: float) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = _Reads(read).double().eval()
    with torch.no_grad():
        for tensor in (model.write.weight, model.write.bias):
            tensor[4:] = factor * tensor[:4]
    return model, torch.randn(16, 4, dtype=torch.float64)


def test_stream_that_an_embedding_writes_and_reads_stays() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, words: Tensor) -> Tensor:
            found = self.embedding(words)
            return self.head(found + self.layer(found))

    torch.manual_seed(0)
    model, words = Words().double(), torch.randint(0, 11, (5, 6))
    dense = deepcopy(model)
    with torch.no_grad():
        for network in (model, dense):
            for tensor in (network.embedding.weight.T, network.layer.weight, network.layer.bias):
                tensor[4:] = tensor[:4].clone()
    report = lf.fold(model, words, keep=0.5, of="channels")
    assert any("which is used in another way" in kept.reason for kept in report.kept)
    assert error_of(run(model, (words,)), run(dense, (words,))) <= 1e-12
