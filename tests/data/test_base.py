import lightning
import pytest
import torch

from lightning_fold.data import DigitsDataModule
from lightning_fold.modules import Classifier


class Recorder(lightning.Callback):
    """Remembers the targets of every training batch."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch[1].tolist()))


def fit(folder, epochs, ckpt_path=None, **checkpointing):
    recorder = Recorder()
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", **checkpointing)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[recorder, checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    lightning.seed_everything(3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10))
    model = Classifier(network)
    trainer.fit(model, DigitsDataModule(batch_size=256, seed=5), ckpt_path=ckpt_path)
    return recorder.batches, model.state_dict()


@pytest.mark.parametrize("on_train_epoch_end", [True, False])
def test_resumed_run_equals_unbroken_run(tmp_path, on_train_epoch_end):
    unbroken, weights = fit(tmp_path, 4, save_on_train_epoch_end=on_train_epoch_end)
    resumed, resumed_weights = fit(
        tmp_path / "resumed", 4, tmp_path / "epoch=1.ckpt", save_on_train_epoch_end=on_train_epoch_end
    )
    assert resumed == [batch for batch in unbroken if batch[0] >= 2]
    torch.testing.assert_close(resumed_weights, weights, rtol=0, atol=0)


def test_order_changes_with_the_epoch_and_incomplete_batches_are_dropped(tmp_path):
    batches, _ = fit(tmp_path, 2)
    first, second = ([batch for epoch, batch in batches if epoch == wanted] for wanted in (0, 1))
    assert first != second
    assert [len(batch) for batch in first] == [256] * (1257 // 256)


def test_a_set_smaller_than_a_batch_is_one_batch():
    module = DigitsDataModule(batch_size=2000)
    assert [len(targets) for _, targets in module.train_dataloader()] == [1257]


def test_evaluation_sees_every_sample_in_order():
    module = DigitsDataModule(batch_size=100)
    targets = torch.cat([targets for _, targets in module.test_dataloader()])
    assert torch.equal(targets, module.splits.test.targets)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"num_workers": -1}])
def test_sizes_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"DigitsDataModule\(.*expected at least"):
        DigitsDataModule(**arguments)
