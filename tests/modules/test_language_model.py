"""A tiny LLaMA on a text: what is logged, what rewrites make of it in a run, and the commands after it."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
import yaml

import lightning_fold as lf
from lightning_fold.callbacks import ChannelFolding, ChannelPruning
from lightning_fold.cli import main
from lightning_fold.data import TextDataModule
from lightning_fold.modules import LanguageModel
from lightning_fold.storage.checkpoints import record_of

pytest.importorskip("transformers", reason="needs the extra transformers")

NETWORK = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
MODEL = {"network": "lightning_fold.models.CausalTransformer", "network_args": NETWORK}
DATA: dict[str, Any] = {"context": 16, "batch_size": 64, "val_share": 0.003, "test_share": 0.003}
SKIP = ["*self_attn*"]  # what is left are the units of the gated MLPs
UNITS = "model.model.layers.1.mlp.up_proj.weight"


def fit(*callbacks, epochs=2):
    lightning.seed_everything(1)
    module = LanguageModel(network_args=NETWORK, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, limit_train_batches=5, callbacks=[*callbacks], **options
    )
    trainer.fit(module, TextDataModule(**DATA))
    return trainer, module


def measured(network):
    """Nats per token and share of right guesses on the test part, in one batch."""
    test = TextDataModule(**DATA).splits.test
    tokens, targets = test.__getitems__(range(len(test)))
    with torch.no_grad():
        logits = network.eval()(tokens)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(), (
        logits.argmax(2) == targets
    ).double().mean()


def test_logs_what_it_computes():
    trainer, module = fit()
    names = {f"{name}/{split}" for name in ("loss", "accuracy", "perplexity") for split in ("train", "val")}
    assert names <= set(trainer.callback_metrics)
    logged = trainer.test(module, TextDataModule(**DATA), verbose=False)[0]
    nats, accuracy = measured(module.network)
    assert logged["loss/test"] == pytest.approx(nats, rel=1e-5)
    assert logged["perplexity/test"] == pytest.approx(torch.tensor(nats).exp().item(), rel=1e-4)
    assert logged["accuracy/test"] == pytest.approx(float(accuracy))
    assert nats < 4.5  # ln 256 is 5.5


@pytest.mark.parametrize(("kind", "function"), [(ChannelFolding, lf.fold), (ChannelPruning, lf.prune)])
def test_callback_is_the_function_and_checkpoints_hold_what_it_made(kind, function, tmp_path):
    trainer, module = fit(kind(keep=0.6, of="channels", skip=SKIP))
    dense = record_of(module).dense
    assert dense is not None
    expected = dense.network_like(module.network)
    function(expected, torch.randint(256, (4, 16)), keep=0.6, of="channels", skip=SKIP)
    assert expected.state_dict()[UNITS].shape == (24, 16)
    torch.testing.assert_close(module.network.state_dict(), expected.state_dict(), rtol=0, atol=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert measured(loaded.network) == measured(module.network)


def test_units_that_are_there_twice_merge_without_any_change():
    """Gate and up together keep their rows; the columns of the layer behind are summed."""
    module = LanguageModel(network_args=NETWORK).double()
    mlps: list[Any] = [module.network.get_submodule(f"model.model.layers.{layer}.mlp") for layer in (0, 1)]
    with torch.no_grad():
        for mlp in mlps:
            for rows in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T):
                rows[20:] = rows[:20]
    units = [units_of(mlp)[:20] for mlp in mlps]
    tokens = torch.randint(256, (5, 16))
    before = module(tokens).detach()
    lf.fold(module.network, tokens, keep=0.5, of="channels", skip=SKIP)
    torch.testing.assert_close(module(tokens).detach(), before, rtol=0, atol=1e-6)  # its norms compute in float32
    for mlp, expected in zip(mlps, units, strict=True):
        expected[:, 32:] *= 2
        found = units_of(mlp)
        torch.testing.assert_close(found[found[:, 0].argsort()], expected[expected[:, 0].argsort()])


def units_of(mlp):
    """Of each hidden unit the row of its gate, the row of its up, the column that reads it."""
    return torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T], 1).detach().clone()


def test_teacher_is_asked_for_every_token():
    torch.manual_seed(0)
    module = LanguageModel(network_args=NETWORK, distillation=0.25, temperature=2.0)
    other = LanguageModel(network_args=NETWORK).network
    object.__setattr__(module, "teacher", lambda: other)
    tokens, targets = torch.randint(256, (2, 3, 16))
    loss, logits = module.loss(tokens, targets)
    assert logits.shape == (3, 16, 256)
    student, teacher = ((network / 2).log_softmax(2) for network in (logits, other(tokens)))
    divergence = 4 * (teacher.exp() * (teacher - student)).sum(2).mean()
    nats = -logits.log_softmax(2).gather(2, targets[..., None]).mean()
    torch.testing.assert_close(loss, 0.75 * nats + 0.25 * divergence)


@pytest.mark.parametrize(("size", "message"), [(1, r"vocab_size=1\): expected at least 2"), (50, "Set vocab_size=256")])
def test_wrong_numbers_of_tokens_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        module = LanguageModel(network_args=NETWORK, vocab_size=size)
        lightning.Trainer(logger=False, accelerator="cpu").test(module, TextDataModule(**DATA), verbose=False)


def test_commands_from_one_run_to_the_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-fold"])
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    rewrites = [
        {
            "class_path": "lightning_fold.callbacks.ChannelFolding",
            "init_args": {"keep": 0.6, "of": "channels", "skip": SKIP},
        }
    ]
    config = {
        "trainer": {"max_epochs": 1, "limit_train_batches": 5, "callbacks": rewrites, **silent},
        "model": {"class_path": "lightning_fold.modules.LanguageModel", "init_args": MODEL},
        "data": {"class_path": "lightning_fold.data.TextDataModule", "init_args": DATA},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "config.yaml"])
    assert "perplexity/test" in capsys.readouterr().out
    summary = json.loads((tmp_path / "runs/version_0/compression.json").read_text())
    for kind in ("dense", "compressed"):
        network = lf.load(f"runs/version_0/{kind}.pt")
        assert summary[kind]["parameters"] == lf.count_parameters(network)
        nats, accuracy = map(float, measured(network))
        assert summary[kind]["test_accuracy"] == pytest.approx(accuracy)
        assert summary["metrics"][kind]["perplexity/test"] == pytest.approx(math.exp(nats), rel=1e-5)
    words = [
        "--methods",
        "[prune-l1,fold]",
        "--sizes",
        "[0.6]",
        "--of",
        "channels",
        "--skip",
        str(SKIP),
        "--output",
        "out",
    ]
    monitored = ["--monitor", "perplexity/test", "--mode", "min"]
    main(["compare", "--checkpoint", "runs/version_0/dense.pt", *words, *monitored])
    with Path("out/comparison.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    pruned = lf.load("runs/version_0/dense.pt")
    lf.prune(pruned, torch.randint(256, (4, 16)), keep=0.6, of="channels", importance="l1", skip=SKIP)
    expected = {"dense": "runs/version_0/dense.pt", "fold": "runs/version_0/compressed.pt"}
    networks = {name: lf.load(path) for name, path in expected.items()} | {"prune-l1": pruned}
    assert rows.keys() == networks.keys()
    for name, network in networks.items():
        assert float(rows[name]["accuracy"]) == pytest.approx(torch.tensor(measured(network)[0]).exp().item(), rel=1e-4)
