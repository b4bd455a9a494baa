from functools import partial

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn

from lightning_fold.data import DigitsDataModule
from lightning_fold.modules import Classifier
from lightning_fold.regularizers import Smoothness

NETWORK = {"in_features": 64, "hidden": [20], "out_features": 10}


def trainer(folder, epochs=1, **arguments):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def fit(model, folder, epochs=1):
    run = trainer(folder, epochs, callbacks=[ModelCheckpoint(folder, filename="last")])
    run.fit(model, DigitsDataModule())
    return run


def test_learns_digits_and_logs_what_it_computes(tmp_path):
    model = Classifier(network_args=NETWORK, optimizer=partial(torch.optim.AdamW, lr=0.01))
    data = DigitsDataModule()
    run = fit(model, tmp_path, epochs=4)
    assert {"loss/train", "loss/val", "accuracy/train", "accuracy/val"} <= set(run.callback_metrics)
    logged = run.test(model, data, verbose=False)[0]
    inputs, targets = data.splits.test.__getitems__(range(360))
    with torch.no_grad():
        logits = model.network(inputs)
    assert logged["accuracy/test"] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert logged["loss/test"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-4)
    assert logged["accuracy/test"] > 0.9
    predicted = run.predict(model, data)
    assert predicted is not None
    torch.testing.assert_close(torch.cat(predicted), logits.softmax(1))  # pyright: ignore


def test_label_smoothing_is_torchs():
    torch.manual_seed(0)
    model = Classifier(network_args=NETWORK, label_smoothing=0.2)
    inputs, targets = torch.randn(5, 64), torch.arange(5)
    smooth = torch.full((5, 10), 0.02) + 0.8 * F.one_hot(targets, 10)
    loss, logits = model.loss(inputs, targets)
    torch.testing.assert_close(loss, -(smooth * logits.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"optimizer": torch.optim.Adam},
        {"optimizer": partial(torch.optim.SGD, lr=0.3, momentum=0.5), "lr_scheduler": None},
        {"optimizer": partial(torch.optim.AdamW, betas=(0.8, 0.9)), "label_smoothing": 0.1},
        {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=2)},
        {"lr_scheduler": partial(ReduceLROnPlateau, monitor="accuracy/val", mode="max")},
    ],
)
def test_checkpoint_gives_the_same_model_back(tmp_path, arguments):
    model = Classifier(network_args=NETWORK, **arguments)
    fit(model, tmp_path)
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    (one, schedule), (other, other_schedule) = (optimizer_and_schedule(m) for m in (model, loaded))
    assert type(one) is type(other)
    assert one.defaults == other.defaults
    assert type(schedule) is type(other_schedule)


def optimizer_and_schedule(model):
    configured = model.configure_optimizers()
    if isinstance(configured, dict):
        return configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    return configured, None


def test_loaded_model_can_be_saved_and_loaded_again(tmp_path):
    model = Classifier(network_args=NETWORK, optimizer=partial(torch.optim.SGD, lr=0.3))
    fit(model, tmp_path)
    again = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    fit(again, tmp_path / "again")
    third = Classifier.load_from_checkpoint(tmp_path / "again" / "last.ckpt", weights_only=True)
    assert third.configure_optimizers().defaults == model.configure_optimizers().defaults


def test_checkpoint_asks_for_no_pretrained_weights(tmp_path, downloads):
    model = Classifier("timm/test_vit", {"pretrained": True, "in_chans": 1, "img_size": 8, "patch_size": 4})
    fit(model, tmp_path)
    assert downloads == ["test_vit"] and model.hparams["network_args"]["pretrained"] is True
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert downloads == ["test_vit"]
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_network_given_as_a_module_is_passed_again_on_load(tmp_path):
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    fit(model, tmp_path)
    assert not {"network", "optimizer"} & set(model.hparams)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, network=network)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_schedule_steps_once_per_epoch(tmp_path):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    model = Classifier(network_args=NETWORK, optimizer=partial(torch.optim.SGD, lr=1e-3), lr_scheduler=schedule)
    run = fit(model, tmp_path, epochs=3)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**3)


def test_number_of_classes_reaches_networks_that_take_it():
    assert Classifier("lightning_fold.models.CifarResNet", {"depth": 8}, num_classes=7).network.linear.out_features == 7


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, r"num_classes=1"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing=1\.0"),
        ({"network": "resnet1"}, ValueError, r"network='resnet1'"),
        ({"network_args": {}}, TypeError, r"network_args accepts in_features"),
        ({"network": nn.Linear(2, 2), "network_args": {"a": 1}}, TypeError, r"omit network_args"),
        (
            {"regularizers": ["nuclear_norm"]},
            TypeError,
            r"\(regularizers=\['nuclear_norm'\]\): expected a list of Smooth",
        ),
        (
            {"regularizers": {"nuclear_norm": 1e-3}},
            TypeError,
            r"regularizers=\{'nuclear_norm': 0\.001\}\): expected a li",
        ),
        (
            {"regularizers": Smoothness()},
            TypeError,
            r"Classifier\(regularizers=<.*Smoothness.*>\): expected a list of Sm",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Classifier(**arguments)


def test_network_with_another_number_of_outputs_is_named():
    model = Classifier(network_args={**NETWORK, "out_features": 11})
    with pytest.raises(ValueError, match=r"returned shape \(3, 11\) for 3 examples, expected \(3, 10\)"):
        model.loss(torch.randn(3, 64), torch.zeros(3, dtype=torch.long))
