"""Least squares behind a cut: against lstsq, exact where channels are linear in each other, undone where it harms."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.layers import CompensatedRMSNorm
from lightning_fold.rewrites.reduction.recovery.least_squares import _ridge_regression
from lightning_fold.rewrites.reduction.recovery.recovery import Recovery
from lightning_fold.rewrites.repair import is_layer_norm, tune_layer_norms
from tests.zoo import ZOO, build, error_of, run


def _batches(name: str, count: int = 3, size: int = 24) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [ZOO[name].inputs(size)[0] + 0.1 * i for i in range(count)]


def test_against_lstsq_on_a_linear_network() -> None:
    """The second layer's weight and bias are the least-squares fit of the dense outputs to the hidden values left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    dense, batches = deepcopy(model), [torch.randn(400, 5, dtype=torch.float64) for _ in range(2)]
    lf.prune(model, batches[0], keep=0.5, of="channels", compensate="least-squares", batches=batches)
    hidden = torch.cat([model[:2](batches[0]), torch.ones(400, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(hidden, dense(batches[0])).solution.T
    torch.testing.assert_close(model[2].weight, expected[:, :-1], rtol=0.02, atol=0.02)  # up to the ridge
    torch.testing.assert_close(model[2].bias, expected[:, -1], rtol=0.02, atol=0.02)


def test_convolution_behind_batch_norm_is_nearly_restored_where_channels_depend_on_each_other() -> None:
    """Half the channels are sums of two others: pruning them loses nothing that least squares cannot give back."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
    )
    model = model.double().eval()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[4:] = 0.3 * (tensor[:4] + tensor[:4].roll(1, 0))
    dense = deepcopy(model)
    batches = [torch.randn(64, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    plain = deepcopy(model)
    lf.prune(plain, batches[0], keep=0.5, of="channels")
    lf.prune(model, batches[0], keep=0.5, of="channels", compensate="least-squares", batches=batches)
    assert [model[0].out_channels, model[1].out_channels] == [4, 6]
    unseen = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    assert error_of(run(model, (unseen,)), run(dense, (unseen,))) < 0.02
    assert error_of(run(plain, (unseen,)), run(dense, (unseen,))) > 0.1


@pytest.mark.parametrize("name", ["conv_norm", "residual", "excited", "separable", "mlp"])
@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_error_on_unseen_data_falls(name: str, method) -> None:
    dense, batches = build(name), _batches(name)
    lf.repair(dense, batches)
    unseen = _batches(name, 4)[-1]
    errors = []
    for compensate in ("none", "least-squares"):
        model = deepcopy(dense)
        method(model, batches[0][:2], keep=0.7, of="channels", compensate=compensate, batches=batches, repair="none")
        errors.append(float((run(model, (unseen,)) - run(dense, (unseen,))).square().sum()))
    assert errors[1] < errors[0]


def test_without_data_it_helps_as_well() -> None:
    """What BatchNorm says of the values is enough."""
    dense, batches = build("conv_norm"), _batches("conv_norm")
    lf.repair(dense, batches)
    errors = []
    for compensate in ("none", "least-squares"):
        model = deepcopy(dense)
        lf.prune(model, batches[0][:2], keep=0.7, of="channels", compensate=compensate)
        errors.append(float((run(model, (batches[0],)) - run(dense, (batches[0],))).square().sum()))
    assert errors[1] < errors[0]


def test_ratio_zero_changes_nothing() -> None:
    model, batches = build("residual"), _batches("residual")
    before = deepcopy(model.state_dict())
    lf.prune(model, batches[0][:2], keep=1.0, of="channels", compensate="least-squares", batches=batches)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=1e-9)


def test_what_makes_it_worse_is_undone_and_said() -> None:
    """Statistics of batches that are nothing like the held-out one."""
    model = build("conv_norm")
    good = _batches("conv_norm", 2)
    lf.repair(model, good)
    dense = deepcopy(model)
    report = lf.prune(model, good[0][:2], keep=0.9, of="channels", repair="data", batches=[30 * good[0] + 50, good[1]])
    assert any("BatchNorm re-estimation was undone" in note for note in report.notes)
    plain = deepcopy(dense)
    lf.prune(plain, good[0][:2], keep=0.9, of="channels")
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert "undone" in str(report)


def test_layer_norms_are_tuned_back() -> None:
    """Scales and shifts that were moved are found again, one norm after the other."""
    dense, x = build("stream"), ZOO["stream"].inputs(64)[0]
    model = deepcopy(dense)
    norms = {path: module for path, module in model.named_modules() if is_layer_norm(module)}
    with torch.no_grad():
        for norm in norms.values():
            norm.weight *= 1.7
            norm.bias += 0.4
    assert error_of(run(model, (x,)), run(dense, (x,))) > 1e-3
    rows = {path: torch.eye(len(norm.weight), dtype=torch.float64) for path, norm in norms.items()}
    tune_layer_norms(dense, model, (x,), rows)
    assert len(norms) > 1 and error_of(run(model, (x,)), run(dense, (x,))) <= 1e-10


def test_norms_that_count_merged_channels_are_tuned() -> None:
    """They are no RMSNorms any more, and brought back towards the dense network all the same."""
    dense, batches = build("stream_rms"), _batches("stream_rms")
    plain, tuned = deepcopy(dense), deepcopy(dense)
    lf.fold(plain, batches[0][:2], keep=0.8, of="channels", repair="none", batches=batches)
    report = lf.fold(tuned, batches[0][:2], keep=0.8, of="channels", repair="data", batches=batches)
    assert report.notes == ()
    for before, after in zip(plain.norms, tuned.norms, strict=True):
        assert isinstance(after, CompensatedRMSNorm) and not torch.equal(before.weight, after.weight)
    expected = run(dense, (batches[-1],))
    errors = [float((run(model, (batches[-1],)) - expected).square().sum()) for model in (tuned, plain)]
    assert errors[0] < 0.9 * errors[1]


def test_failure_leaves_the_network_as_it_was(monkeypatch) -> None:
    model, batches = build("residual"), _batches("residual")
    before = deepcopy(model.state_dict())
    monkeypatch.setattr(Recovery, "compensate", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        lf.prune(model, batches[0][:2], keep=0.6, of="channels", compensate="least-squares", batches=batches)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_batches_of_another_shape_are_left_out_and_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    other, (first, longer, last) = deepcopy(model), (torch.randn(20, n, 5).double() for n in (4, 6, 4))
    notes = lf.prune(
        model, first, keep=0.5, of="channels", compensate="least-squares", batches=[first, longer, last]
    ).notes
    assert "1 of 3 batches were left out" in "; ".join(notes)
    assert not lf.prune(other, first, keep=0.5, of="channels", compensate="least-squares", batches=[first, last]).notes
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


class _Gated(nn.Module):
    """Two inputs, of which the second counts as much as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return self.out(self.one(x).relu() * self.two(gate).sigmoid())


@pytest.mark.parametrize("named", [False, True])
def test_as_many_elements_of_a_batch_are_read_as_the_network_takes(named: bool) -> None:
    """Against lstsq on what the last layer reads of both inputs; targets behind them are not read."""
    torch.manual_seed(0)
    model = _Gated().double()
    dense = deepcopy(model)
    x, gate = torch.randn(400, 5).double(), torch.randn(400, 4).double()
    batch = {"x": x, "gate": gate, "y": x.sum(1)} if named else (x, gate, x.sum(1))
    example = {"x": x[:2], "gate": gate[:2]} if named else (x[:2], gate[:2])
    lf.prune(model, example, keep=0.5, of="channels", compensate="least-squares", batches=[batch, batch])
    read = model.one(x).relu() * model.two(gate).sigmoid()
    hidden = torch.cat([read, torch.ones(400, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(hidden, dense(x, gate)).solution.T
    torch.testing.assert_close(model.out.weight, expected[:, :-1], rtol=0.02, atol=0.02)
    torch.testing.assert_close(model.out.bias, expected[:, -1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("example", "batch", "message"),
    [
        ((2, 2), (1,), r"expected batches of \(2 inputs, \.\.\.\), found a tuple of 1"),
        ({"x": 2, "gate": 2}, {"x": 1, "y": 1}, "expected batches that are mappings with x, gate, found one with x, y"),
        ({"x": 2, "gate": 2}, (1, 1), "expected batches that are mappings with x, gate, found one of type tuple"),
    ],
)
def test_batches_without_the_inputs_are_refused(example, batch, message) -> None:
    sizes = {"x": 5, "gate": 4}

    def values(given):
        if isinstance(given, dict):
            return {name: torch.randn(count, sizes.get(name, 1)) for name, count in given.items()}
        return tuple(torch.randn(count, size) for count, size in zip(given, sizes.values(), strict=False))

    model = _Gated()
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        lf.prune(model, values(example), keep=0.5, of="channels", compensate="least-squares", batches=[values(batch)])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("places", [7, 40])
def test_ridge_regression_with_fewer_and_with_more_places_than_columns(places: int) -> None:
    """Against lstsq on rows that hold the ridge: a thousandth of the mean square of the columns."""
    generator = torch.Generator().manual_seed(0)
    inputs, missing = (torch.randn(places, n, generator=generator, dtype=torch.float64) for n in (20, 3))
    ridge = (1e-3 * inputs.square().sum(0).mean()).sqrt() * torch.eye(20, dtype=torch.float64)
    padded = torch.cat([missing, torch.zeros(20, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(torch.cat([inputs, ridge]), padded).solution.T
    torch.testing.assert_close(_ridge_regression(inputs, missing), expected)


@pytest.mark.parametrize("options", [{"importance": "reconstruction"}, {"compensate": "least-squares"}])
def test_half_precision_does_what_single_does(options) -> None:
    """Sums of the squares of these values are beyond the largest number of half precision."""
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).half()
    batches = [40 * torch.randn(300, 6, dtype=torch.float16) for _ in range(2)]
    single, dense = deepcopy(half).float(), deepcopy(half)
    options = options | {"keep": 0.5, "of": "channels"}
    report = lf.prune(half, batches[0], batches=batches, **options)
    lf.prune(single, batches[0].float(), batches=[batch.float() for batch in batches], **options)
    assert report.notes == ()
    torch.testing.assert_close(half[0].weight.float(), single[0].weight, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(half[2].weight.float(), single[2].weight, rtol=0.02, atol=2e-3)
    assert ("compensate" in options) != bool(torch.isin(half[2].weight, dense[2].weight).all())


def test_norm_that_is_called_twice_is_not_tuned() -> None:
    """It has no one output to be tuned to; the others are."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.down, self.head = (
                nn.Linear(*sizes) for sizes in ((8, 16), (16, 32), (32, 16), (16, 4))
            )
            self.shared, self.last = nn.LayerNorm(16), nn.LayerNorm(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.shared(self.embed(x))
            return self.head(self.last(x + self.down(self.up(self.shared(x)).relu())))

    torch.manual_seed(0)
    model, batches = Twice().double(), [torch.randn(64, 8, dtype=torch.float64) for _ in range(3)]
    plain = deepcopy(model)
    options: dict[str, Any] = {"keep": 0.75, "of": "channels", "batches": batches}
    assert lf.prune(model, batches[0], repair="data", **options).notes == ()
    lf.prune(plain, batches[0], repair="none", **options)
    assert torch.equal(model.shared.weight, plain.shared.weight)
    assert not torch.equal(model.last.weight, plain.last.weight)


def _with_others() -> tuple[nn.Module, list[torch.Tensor]]:
    """Between convolutions that can be solved for, some that cannot."""
    torch.manual_seed(0)
    transposed, grouped = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(8, 8, 3, groups=2)
    reflecting, depthwise = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 3, groups=8)
    first, plain, last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 4, 1)
    layers = [first, transposed, grouped, reflecting, depthwise, plain, last]
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU()))).double()
    return model, [torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("method", [lf.prune, lf.fold])
def test_layers_that_cannot_be_solved_for_are_named(method) -> None:
    model, batches = _with_others()
    options: dict[str, Any] = {"keep": 0.5, "of": "channels", "batches": batches}
    assert method(deepcopy(model), batches[0], **options).notes == ()
    for compensate, names in (("least-squares", "fit 2, 4, 6:"), ("bias", "fit 2, 4, 6 and 1 more:")):
        notes = method(deepcopy(model), batches[0], compensate=compensate, **options).notes
        (note,) = (note for note in notes if note.startswith(f"compensate={compensate!r}"))
        assert f"did not {names}" in note


@pytest.mark.parametrize("importance", ["activation", "reconstruction"])
def test_widths_of_which_the_norms_decide_are_named(importance) -> None:
    model, batches = _with_others()
    options: dict[str, Any] = {"keep": 0.5, "of": "channels", "batches": batches}
    expected = lf.prune(deepcopy(model), batches[0], importance="l2", **options)
    report = lf.prune(deepcopy(model), batches[0], importance=importance, **options)
    (note,) = report.notes
    assert note.startswith(
        f"importance={importance!r} was replaced by the norm of the weights in 0.weight, 2.weight, 4.weight:"
    )
    assert expected.notes == ()
    skipped = lf.prune(model, batches[0], importance=importance, **options, skip=["0", "2", "4"])
    assert skipped.changes and skipped.notes == ()
