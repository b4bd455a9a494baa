"""Projects nobody here wrote, unchanged but for the callback."""

import lightning
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

import lightning_fold as lf
from lightning_fold.callbacks import (
    ChannelFolding,
    ChannelPruning,
    CompressionMonitor,
    LowRankFactorization,
    SqueezeRelease,
)
from lightning_fold.storage.checkpoints import record_of


def squeeze():
    return SqueezeRelease(dense_epochs=1, cycles=1, shrink_epochs=0, masked_epochs=1, sparsity=[0.5])


def fit(module, data, folder, callback, batch_size=16, epochs=3, **loaders):
    """Train with one callback: the module, whose every parameter is trained, and another loaded from its checkpoint."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, CompressionMonitor()],
    )
    trainer.fit(module, DataLoader(data, batch_size=batch_size), **loaders)
    trainer.save_checkpoint(folder / "small.ckpt")
    (optimizer,) = trainer.optimizers
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.model.parameters())
    dense = record_of(module).dense
    assert dense is not None and lf.count_parameters(module.model) < dense.parameters
    loaded = lf.load_from_checkpoint(type(module), folder / "small.ckpt")
    return module.cpu().eval(), loaded.eval()


TRANSFORMER = {"squeeze-release": squeeze, "prune": lambda: ChannelPruning(0.7, "channels", at_epoch=1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRANSFORMER))
def test_transformer_of_the_lightning_demos(tmp_path, monkeypatch, name):
    demo = pytest.importorskip("lightning.pytorch.demos.transformer")
    monkeypatch.setattr(demo.LightningTransformer, "prepare_data", lambda self: None)  # downloads a text
    monkeypatch.setattr(demo.LightningTransformer.__init__, "__defaults__", (40,))
    tokens = torch.randint(0, 40, (32, 17), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    data = [(row[:-1], row[1:]) for row in tokens]
    module, loaded = fit(demo.LightningTransformer(vocab_size=40), data, tmp_path, TRANSFORMER[name]())
    inputs = tokens[:4, :-1], tokens[:4, 1:]
    torch.testing.assert_close(loaded(*inputs), module(*inputs), rtol=0, atol=0)


class Segmentation(lightning.LightningModule):
    """As one writes it for torchvision's segmentation networks, which return a dict."""

    def __init__(self, network="lraspp_mobilenet_v3_large", **arguments):
        super().__init__()
        self.save_hyperparameters()
        build = getattr(torchvision.models.segmentation, network)
        self.model = build(weights=None, weights_backbone=None, num_classes=3, **arguments)

    def training_step(self, batch, batch_idx):
        images, masks = batch
        found = self.model(images)
        loss = nn.functional.cross_entropy(found["out"], masks)
        return loss + 0.4 * nn.functional.cross_entropy(found["aux"], masks) if "aux" in found else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


SEGMENTATION = {
    "lraspp, pruned": ({}, ChannelPruning),
    "lraspp, factorized": ({}, LowRankFactorization),
    "fcn": ({"network": "fcn_resnet50", "aux_loss": False}, ChannelPruning),
    "fcn with an auxiliary head": ({"network": "fcn_resnet50", "aux_loss": True}, ChannelPruning),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SEGMENTATION))
def test_torchvision_segmentation(tmp_path, name):
    arguments, callback = SEGMENTATION[name]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 64, 64, generator=generator)
    data = [(image, (image.mean(0) * 3).long().clamp(max=2)) for image in images]
    torch.manual_seed(0)
    module, loaded = fit(Segmentation(**arguments), data, tmp_path, callback(at_epoch=1), batch_size=2, epochs=2)
    found, expected = loaded.model(images), module.model(images)
    assert set(found) == ({"out", "aux"} if arguments.get("aux_loss") else {"out"})
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


TEXT = {
    "squeeze-release": squeeze,
    "prune": lambda: ChannelPruning(0.7, "channels", at_epoch=1),
    "fold": lambda: ChannelFolding(0.7, "channels", at_epoch=1),
    "factorize": lambda: LowRankFactorization(0.5, at_epoch=1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in list(TEXT)[:-1]] + ["factorize"]
)
def test_hugging_face_text_classifier(tmp_path, name):
    """Batches are dicts, given to the network by name."""
    transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=12, num_labels=2, **sizes)

    class Text(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = transformers.AutoModelForSequenceClassification.from_config(config)

        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    tokens = torch.randint(5, 40, (32, 10), generator=torch.Generator().manual_seed(0))
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": (row[0] > 20).long()} for row in tokens
    ]
    torch.manual_seed(0)
    module, loaded = fit(Text(), rows, tmp_path, TEXT[name]())
    torch.testing.assert_close(loaded.model(tokens).logits, module.model(tokens).logits, rtol=0, atol=0)
