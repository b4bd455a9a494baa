"""ModelCheckpoint, resuming within an epoch, and checkpoints of LightningModules that know nothing of the package."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import ChannelFolding, ChannelPruning, LowRankFactorization
from lightning_fold.storage.checkpoints import ADVICE
from tests.callbacks.projects import CALLBACKS, EPOCHS, REWRITES, Project, loader, project

rewriting = pytest.mark.parametrize("name", [name for name in CALLBACKS if REWRITES[name]])


def with_accuracies(module, values):
    """Let a module log these validation accuracies instead of its own."""
    module.validation_step = lambda batch, batch_idx: module.log("accuracy/val", values[module.current_epoch])
    return module


@rewriting
def test_best_compressed_network(make_trainer, tmp_path, name):
    """The dense epochs are better, and so are those between cycles; the best of the final shapes is kept."""
    last = REWRITES[name][-1]
    values = [0.9] * last + [0.4, 0.3][: EPOCHS - last]
    best = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="compressed/accuracy", mode="max", save_last=True)
    module, seen = with_accuracies(project(), values), []
    metrics = lightning.pytorch.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, _: seen.append(float(trainer.callback_metrics["compressed/accuracy"]))
    )
    trainer = make_trainer(EPOCHS, CALLBACKS[name](), best, metrics)
    trainer.fit(module, loader(), loader())
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([torch.nan] * last + values[last:]), equal_nan=True)
    assert best.best_model_path.endswith(f"epoch={last}.ckpt")
    assert float(best.best_model_score) == pytest.approx(0.4)
    small = {key: value.shape for key, value in module.state_dict().items()}
    trainer.test(module, loader(), ckpt_path="best", weights_only=True, verbose=False)
    assert {key: value.shape for key, value in module.state_dict().items()} == small


def test_three_best_and_the_last_are_all_readable(make_trainer, tmp_path):
    """Of two shapes, in one run; each tests as a module whose network had that shape."""
    best = ModelCheckpoint(tmp_path, monitor="accuracy/val", mode="max", save_top_k=3, save_last=True)
    trainer = make_trainer(EPOCHS, CALLBACKS["prune"](), best)
    trainer.fit(with_accuracies(project(), [0.4, 0.6, 0.5, 0.3]), loader(), loader())
    sizes = []
    for path in [*best.best_k_models, best.last_model_path]:
        module = lf.load_from_checkpoint(Project, path)
        (found,) = make_trainer(1).test(module, loader(), verbose=False)
        (expected,) = trainer.test(project(), loader(), ckpt_path=path, weights_only=True, verbose=False)
        assert found == expected
        sizes.append(lf.count_parameters(module))
    assert len(sizes) == 4 and len(set(sizes)) == 2


class Resumable:
    """A loader whose position a checkpoint holds."""

    def __init__(self):
        self.batches, self.position = list(loader()), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.position %= len(self.batches)
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@rewriting
def test_resume_within_an_epoch(make_trainer, tmp_path, name):
    """Before, between and after its rewrites."""
    every = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    unbroken = project()
    make_trainer(EPOCHS, CALLBACKS[name](), every).fit(unbroken, Resumable())
    for step in (4, 7, 8):
        resumed = project()
        trainer = make_trainer(EPOCHS, CALLBACKS[name]())
        trainer.fit(resumed, Resumable(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert trainer.global_step == 3 * EPOCHS
        torch.testing.assert_close(dict(resumed.state_dict()), dict(unbroken.state_dict()), rtol=0, atol=0)


@rewriting
@pytest.mark.parametrize("weights_only", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_module_of_ones_own_from_a_checkpoint(make_trainer, tmp_path, name, weights_only):
    module = project()
    trainer = make_trainer(EPOCHS, CALLBACKS[name]())
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "small.ckpt", weights_only=weights_only)
    for load in (
        lambda: Project.load_from_checkpoint(tmp_path / "small.ckpt"),
        lambda: make_trainer(1).test(project(), loader(), ckpt_path=tmp_path / "small.ckpt"),
    ):
        with pytest.raises(
            RuntimeError, match=r"was compressed.*lightning_fold\.load_from_checkpoint\(YourModule, path"
        ):
            load()
    loaded = lf.load_from_checkpoint(Project, tmp_path / "small.ckpt")
    assert type(loaded) is Project and "on_load_checkpoint" not in vars(Project)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    images = torch.rand(5, 36)
    assert torch.equal(loaded.net(images), module.net(images))


def test_checkpoint_of_a_dense_network_is_an_ordinary_one(make_trainer, tmp_path):
    trainer = make_trainer(1, ChannelPruning(at_epoch=-1))
    trainer.fit(with_accuracies(project(), [0.5, 0.4]), loader(), loader())
    module = project()
    dense = make_trainer(1, CALLBACKS["monitor"]())
    dense.fit(module, loader(), loader())
    dense.save_checkpoint(tmp_path / "dense.ckpt", weights_only=False)
    assert ADVICE not in torch.load(tmp_path / "dense.ckpt", weights_only=True)["state_dict"]
    for load in (Project.load_from_checkpoint, lambda path: lf.load_from_checkpoint(Project, path)):
        state = load(tmp_path / "dense.ckpt").state_dict()
        torch.testing.assert_close(dict(state), dict(module.state_dict()), rtol=0, atol=0)


class Configured(Project):
    """Has hyper-parameters and a hook of its own."""

    def __init__(self, hidden=16, shown=None):
        super().__init__()
        self.save_hyperparameters(ignore="shown")
        self.net = nn.Sequential(nn.Linear(36, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        self.shown, self.loaded = shown, None

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 7

    def on_load_checkpoint(self, checkpoint):
        self.loaded = checkpoint["mine"]


def test_hyper_parameters_and_hooks_of_the_class_are_used(make_trainer, tmp_path):
    module = Configured(hidden=24)
    trainer = make_trainer(2, ChannelPruning(keep=0.5, of="channels", at_epoch=1))
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    own = Configured.on_load_checkpoint
    loaded = lf.load_from_checkpoint(Configured, tmp_path / "small.ckpt", shown="here", map_location="cpu")
    assert (loaded.hparams["hidden"], loaded.net[0].out_features) == (24, 12)
    assert (loaded.shown, loaded.loaded) == ("here", 7)
    assert Configured.on_load_checkpoint is own
    with pytest.raises(ValueError, match="expected the structure of the same network"):
        lf.load_from_checkpoint(Project, tmp_path / "small.ckpt")
    assert "on_load_checkpoint" not in vars(Project)
    again = make_trainer(1)
    again.strategy.connect(loaded)
    again.save_checkpoint(tmp_path / "again.ckpt")  # without any callback: the structure goes on
    assert lf.load_from_checkpoint(Configured, tmp_path / "again.ckpt").net[0].out_features == 12


@pytest.mark.parametrize("callback", [ChannelPruning, ChannelFolding, LowRankFactorization])
def test_resuming_from_another_networks_checkpoint_trains_nothing(make_trainer, tmp_path, callback):
    trainer = make_trainer(2, callback(at_epoch=1))
    trainer.fit(project(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    other = project()
    other.net = nn.Sequential(nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    resumed = make_trainer(4, callback(at_epoch=1))
    with pytest.raises(ValueError, match="expected the structure of the same network"):
        resumed.fit(other, loader(), loader(), ckpt_path=tmp_path / "small.ckpt", weights_only=True)
    assert resumed.global_step == 0
    torch.testing.assert_close(dict(other.state_dict()), before, rtol=0, atol=0)
