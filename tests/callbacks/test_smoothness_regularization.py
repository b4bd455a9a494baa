"""SmoothnessRegularization: its step is the step of loss plus penalty; in any module, however it is trained."""

from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, LambdaCallback
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import random_unstructured

from lightning_fold.callbacks import LowRankFactorization, SmoothnessRegularization
from lightning_fold.callbacks.smoothness_regularization import regularize
from lightning_fold.modules import Classifier
from lightning_fold.regularizers import Smoothness, first_difference, nuclear_norm, spectrum_decay

PENALTIES = {"nuclear_norm": 0.02, "first_difference": 0.05}


def penalty(network):
    """The same penalties by other means: singular values, and differences by indexing."""
    total = torch.zeros(())
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            w = layer.weight
            squares = [(w[1:] - w[:-1]).square().mean(), (w[:, 1:] - w[:, :-1]).square().mean()]
            squares = [square for square, size in zip(squares, w.shape, strict=False) if size > 1]
            total = total + 0.02 * torch.linalg.svdvals(w.flatten(1)).sum() + 0.05 * w.numel() * sum(squares)
    return total


def plain_sgd(module, batches, *, accumulate=1, clip=None, every=1):
    """Train by hand on loss plus penalty."""
    optimizer = module.configure_optimizers()
    for step in range(len(batches) // accumulate):
        optimizer.zero_grad()
        for index in range(step * accumulate, (step + 1) * accumulate):
            (module.training_step(batches[index], index) / accumulate).backward()
        if step % every == 0:
            (every * penalty(module)).backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()


def batches_of(data, epochs):
    found = []
    for epoch in range(epochs):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def assert_close(one, other, atol=2e-4):
    for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip": 0.5}, {"every": 2}], ids=str)
def test_trains_as_loss_plus_penalty_by_hand(make_plain, make_trainer, data, network, options):
    by_callback, by_hand = make_plain(network), make_plain(network)
    callback = SmoothnessRegularization(PENALTIES, every=options.get("every", 1))
    settings = {"accumulate_grad_batches": options.get("accumulate", 1), "gradient_clip_val": options.get("clip")}
    make_trainer(2, callback, **settings).fit(by_callback, data)
    by_hand.train()
    plain_sgd(by_hand, batches_of(data, 2), **options)
    assert_close(by_callback, by_hand)
    without = make_plain(network)
    make_trainer(2, **settings).fit(without, data)
    moved = max(float((a - b).abs().max()) for a, b in zip(without.parameters(), by_hand.parameters(), strict=True))
    assert moved > 0.02, "the penalty hardly matters here"


def test_bf16_follows_float32(make_plain, make_trainer, data):
    whole, mixed = make_plain(), make_plain()
    make_trainer(2, SmoothnessRegularization(PENALTIES)).fit(whole, data)
    make_trainer(2, SmoothnessRegularization(PENALTIES), precision="bf16-mixed").fit(mixed, data)
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    assert_close(whole, mixed, atol=0.03)


def test_only_the_penalty_moves_weights_without_a_loss(make_plain, make_trainer, data):
    """The weights lose rank, and the log says so."""
    module = make_plain()
    module.training_step = lambda batch, batch_idx: 0 * sum(p.sum() for p in module.parameters())
    layers = [layer.weight for layer in module.backbone.layers if isinstance(layer, nn.Linear)]
    rank = torch.linalg.matrix_rank(layers[0], rtol=0.05)
    trainer = make_trainer(6, SmoothnessRegularization({"nuclear_norm": 0.05}, layers=["backbone.*"], every=2))
    trainer.fit(module, data)
    assert torch.linalg.matrix_rank(layers[0], rtol=0.05) < rank
    decays = [s[: -(-len(s) // 4)].sum() / s.sum() for s in (torch.linalg.svdvals(w).square() for w in layers)]
    expected = pytest.approx(float(sum(decays)) / 3, rel=1e-4)
    assert float(trainer.callback_metrics["smoothness/spectrum_decay"]) == expected
    assert "smoothness/nuclear_norm" in trainer.callback_metrics


def test_logged_value_is_the_penalty(make_plain, make_trainer, data):
    module = make_plain()
    norms = sum(float(torch.linalg.svdvals(w).sum()) for w in module.parameters() if w.dim() == 2)
    trainer = make_trainer(1, SmoothnessRegularization({"nuclear_norm": 0.1}, every=100))
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["smoothness/nuclear_norm"]) == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("in_module", [0, 1, 3])
def test_each_of_several_logs_what_is_its_own(make_classifier, make_trainer, data, in_module):
    """Penalties of the module come first, then those of callbacks."""
    layers = [f"network.layers.{place}" for place in (2, 4, 6)]
    kinds = [Smoothness] * in_module + [SmoothnessRegularization] * (3 - in_module)
    several = [kind({"nuclear_norm": 1e-3}, every=100, layers=[name]) for kind, name in zip(kinds, layers, strict=True)]
    module = make_classifier(regularizers=several[:in_module], optimizer=partial(torch.optim.SGD, lr=0.0))
    weights = [module.get_submodule(name).weight for name in layers]
    trainer = make_trainer(1, *several[in_module:])
    trainer.fit(module, data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "smoothness" in name}
    expected = {}
    for number, weight in zip(("", " 2", " 3"), weights, strict=True):
        expected[f"smoothness/nuclear_norm{number}"] = float(torch.linalg.svdvals(weight).sum())
        expected[f"smoothness/spectrum_decay{number}"] = spectrum_decay({"weight": weight})
    assert logged == pytest.approx(expected, rel=1e-4)


def test_goes_on_after_a_rewrite_and_resumes_bit_equal(make_classifier, make_trainer, run_and_save, data):
    def callbacks():
        return [
            SmoothnessRegularization(PENALTIES, every=2, warmup_epochs=2),
            LowRankFactorization(keep=0.6, at_epoch=1),
        ]

    unbroken = make_classifier()
    folder = run_and_save(unbroken, 3, *callbacks())
    assert any(isinstance(layer, nn.Sequential) for layer in unbroken.network.layers)
    for stopped_after in (0, 1):
        resumed = make_classifier()
        make_trainer(3, *callbacks()).fit(resumed, data, ckpt_path=folder / f"{stopped_after}.ckpt", weights_only=True)
        torch.testing.assert_close(unbroken.state_dict(), resumed.state_dict(), rtol=0, atol=0)
    plain = make_classifier()
    make_trainer(3, callbacks()[1]).fit(plain, data)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(unbroken.state_dict(), plain.state_dict())


def test_a_layer_named_stays_penalised_once_it_is_two(make_classifier, make_trainer, run_and_save, data):
    def callbacks():
        return [
            SmoothnessRegularization(PENALTIES, every=1, layers=["network.layers.2"]),
            LowRankFactorization(keep=0.6, at_epoch=1),
        ]

    unbroken, resumed, plain = (make_classifier() for _ in range(3))
    folder = run_and_save(unbroken, 3, *callbacks())
    assert isinstance(unbroken.network.layers[2], nn.Sequential)
    trainer = make_trainer(3, *callbacks())
    trainer.fit(resumed, data, ckpt_path=folder / "1.ckpt", weights_only=True)
    torch.testing.assert_close(unbroken.state_dict(), resumed.state_dict(), rtol=0, atol=0)
    expected = spectrum_decay({str(place): resumed.network.layers[2][place].weight for place in (0, 1)})
    assert float(trainer.callback_metrics["smoothness/spectrum_decay"]) == pytest.approx(expected, rel=1e-5)
    make_trainer(3, callbacks()[1]).fit(plain, data, ckpt_path=folder / "1.ckpt", weights_only=True)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(plain.state_dict(), resumed.state_dict())


def test_classifier_takes_the_same_penalties(make_classifier, make_trainer, data):
    arguments = {"penalties": PENALTIES, "every": 2, "layers": ["network.*"]}
    by_callback = make_classifier()
    make_trainer(2, SmoothnessRegularization(**arguments)).fit(by_callback, data)
    by_argument = make_classifier(regularizers=[Smoothness(**arguments)])
    trainer = make_trainer(2)
    trainer.fit(by_argument, data)
    torch.testing.assert_close(by_callback.state_dict(), by_argument.state_dict(), rtol=0, atol=0)
    assert {"smoothness/nuclear_norm", "smoothness/spectrum_decay"} <= set(trainer.callback_metrics)


def test_checkpoint_of_a_classifier_holds_its_penalties(tmp_path, make_trainer, data):
    network = {"in_features": 36, "hidden": [8], "out_features": 3}
    optimizer = partial(torch.optim.SGD, lr=0.1)
    smoothness = Smoothness(PENALTIES, axes=["input"], every=5)
    module = Classifier("lightning_fold.models.MLP", network, 3, optimizer, regularizers=[smoothness])
    trainer = make_trainer(1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert [each.arguments() for each in loaded.regularizers] == [smoothness.arguments()]


def test_two_optimizers_are_each_penalised_as_often(make_plain, make_trainer, data):
    """With two optimizers that step in turn each gets its own weights, every second of its own steps."""
    module = make_plain()
    module.automatic_optimization = False
    layers = [layer for layer in module.backbone.layers if isinstance(layer, nn.Linear)]
    parts = [[layers[0].weight], [layers[1].weight]]
    module.configure_optimizers = lambda: [torch.optim.SGD(part, lr=0.0) for part in parts]
    added = {0: 0, 1: 0}

    def training_step(batch, batch_idx):
        for optimizer in module.optimizers():
            optimizer.zero_grad()
            module.manual_backward(0 * sum(p.sum() for p in module.parameters()))
            optimizer.step()
            for other in (0, 1):
                added[other] += int(parts[other][0].grad is not None and bool(parts[other][0].grad.any()))
            module.zero_grad()

    module.training_step = training_step
    make_trainer(1, SmoothnessRegularization({"nuclear_norm": 1.0}, every=2), limit_train_batches=2).fit(module, data)
    assert added == {0: 1, 1: 1}


class Unequal(lightning.LightningModule):
    """A generator that is trained once after its critic was trained ``times`` times; by no loss at all."""

    def __init__(self, times):
        super().__init__()
        self.generator, self.critic, self.times = nn.Linear(12, 10), nn.Linear(10, 8), times
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        for optimizer in [*[critic] * self.times, generator]:
            optimizer.zero_grad()
            self.manual_backward(0 * sum(p.sum() for p in self.parameters()))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([layer.weight], lr=0.1) for layer in (self.generator, self.critic)]


@pytest.mark.parametrize("times", [1, 3, 7])
def test_optimizers_that_step_unequally_are_each_penalised(make_trainer, run_and_save, data, times):
    """Each at every second of its own steps, in a resumed run, too, whose epochs have an odd number of them."""

    def make():
        torch.manual_seed(0)
        return Unequal(times)

    def callbacks():
        return [SmoothnessRegularization(penalties, every=2, layers=[name]) for name in ("generator", "critic")]

    penalties = {"first_difference": 0.1}
    unbroken, resumed, by_hand = make(), make(), make()
    folder = run_and_save(unbroken, 3, *callbacks())
    make_trainer(3, *callbacks()).fit(resumed, data, ckpt_path=folder / "0.ckpt", weights_only=True)
    torch.testing.assert_close(unbroken.state_dict(), resumed.state_dict(), rtol=0, atol=0)
    for optimizer, repeats in zip(by_hand.configure_optimizers(), (1, times), strict=True):
        (weight,) = optimizer.param_groups[0]["params"]
        for step in range(3 * 3 * repeats):
            weight.grad = torch.zeros_like(weight)
            if step % 2 == 0:
                (2 * 0.1 * weight.numel() * first_difference(weight)).backward()
            optimizer.step()
    assert_close(unbroken, by_hand, atol=1e-5)


@pytest.mark.parametrize("own", [False, True])
def test_a_skipped_batch_moves_nothing(make_classifier, make_trainer, data, own):
    arguments = {"penalties": PENALTIES, "every": 1, "layers": ["network.*"]}
    module = make_classifier(regularizers=[Smoothness(**arguments)] if own else None)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.training_step = lambda batch, batch_idx: None
    trainer = make_trainer(1, *([] if own else [SmoothnessRegularization(**arguments)]))
    trainer.fit(module, data)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert trainer.global_step == 3 and "smoothness/nuclear_norm" not in trainer.callback_metrics


def test_layers_frozen_at_first_are_penalised_once_they_train(make_plain, make_trainer, data):
    def train(*callbacks):
        module = make_plain()
        first, last = (module.backbone.layers[place].weight for place in (2, 6))
        module.configure_optimizers = lambda: torch.optim.SGD([last], lr=0.1)
        weights = []
        keep = LambdaCallback(on_train_epoch_end=lambda *_: weights.append(first.detach().clone()))
        trainer = make_trainer(2, Unfreeze(), *callbacks, keep)
        trainer.fit(module, data)
        return trainer, weights

    class Unfreeze(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.backbone.layers[2])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.backbone.layers[2], optimizer, initial_denom_lr=1)

    trainer, penalised = train(SmoothnessRegularization({"nuclear_norm": 0.1}, layers=["*.2"], every=1))
    _, plain = train()
    assert torch.equal(penalised[0], plain[0]) and nuclear_norm(penalised[1]) < 0.99 * nuclear_norm(plain[1])
    assert float(trainer.callback_metrics["smoothness/spectrum_decay"]) == spectrum_decay({"first": penalised[1]})


def test_computed_weights_are_named_at_the_start(make_plain, make_trainer, data):
    """And left out; masked ones are penalised."""
    module = make_plain()
    layers = module.backbone.layers
    weight_norm(layers[2])
    random_unstructured(layers[4], "weight", 0.5)
    mask, before = layers[4].weight_mask, layers[4].weight_orig.detach().clone()
    module.training_step = lambda batch, batch_idx: 0 * module.backbone(batch[0]).sum()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    callback = SmoothnessRegularization({"nuclear_norm": 0.1}, layers=["*.2", "*.4"], every=1)
    with pytest.warns(UserWarning, match=r"SmoothnessRegularization: does not penalise backbone\.layers\.2, whose"):
        make_trainer(1, callback, limit_train_batches=1).fit(module, data)
    masked = (before * mask).requires_grad_()
    (gradient,) = torch.autograd.grad(nuclear_norm(masked), masked)
    torch.testing.assert_close(layers[4].weight_orig.detach(), before - 0.1 * 0.1 * mask * gradient)


@pytest.mark.parametrize("own", [False, True])
def test_lbfgs_is_refused(make_classifier, make_trainer, data, own):
    """Its closure runs several times in a step, each time with the penalties."""
    module = make_classifier(regularizers=[Smoothness()] if own else None, optimizer=torch.optim.LBFGS)
    with pytest.raises(ValueError, match=r"^Smoothness(Regularization)?: LBFGS computes .* expected an optimizer"):
        make_trainer(1, *([] if own else [SmoothnessRegularization()])).fit(module, data)


def test_layers_that_match_nothing_are_refused(make_plain, make_trainer, data):
    with pytest.raises(ValueError, match=r"SmoothnessRegularization\(layers=\['head'\].*expected patterns of dotted"):
        make_trainer(1, SmoothnessRegularization(layers=["head"])).fit(make_plain(), data)


def test_patterns_are_checked_at_the_start_alone(make_classifier, make_trainer, run_and_save, data):
    """Not when a layer they name has become two, nor when such a run goes on."""

    def callbacks():
        return [
            SmoothnessRegularization(PENALTIES, skip=["network.layers.2"]),
            LowRankFactorization(keep=0.6, at_epoch=1),
        ]

    wrong = {"skip": ["network.stem"]}
    for extra, regularizers in (([SmoothnessRegularization(**wrong)], []), ([], [Smoothness(**wrong)])):
        with pytest.raises(ValueError, match=r"\(skip=\['network\.stem'\]\): matches no linear layer"):
            make_trainer(1, *extra).fit(make_classifier(regularizers=regularizers), data)
    module = make_classifier(regularizers=[Smoothness(PENALTIES, layers=["network.layers.2"])])
    folder = run_and_save(module, 2, *callbacks())
    assert isinstance(module.network.layers[2], nn.Sequential)
    resumed = make_classifier(regularizers=[Smoothness(PENALTIES, skip=["network.layers.2"])])
    trainer = make_trainer(3, *callbacks())
    trainer.fit(resumed, data, ckpt_path=folder / "1.ckpt", weights_only=True)
    assert trainer.current_epoch == 3 and isinstance(resumed.network.layers[2], nn.Sequential)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(resumed, data)
    assert trainer.current_epoch == 4


def test_gradients_that_are_still_scaled_are_refused(make_plain):
    """float16 with an optimizer that unscales inside its step."""
    module = make_plain()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer._step_supports_amp_scaling = True
    trainer = SimpleNamespace(scaler=object(), precision="16-mixed")
    with pytest.raises(ValueError, match=r"precision='16-mixed'\): the gradients of a fused SGD .* Use fused=False"):
        regularize(SmoothnessRegularization(), trainer, module, optimizer, step=0)
