import shutil
from copy import deepcopy

import lightning
import pytest
import torch
import yaml
from torch import nn

import lightning_fold as lf
from lightning_fold.commands.runs import read_run
from lightning_fold.data import DigitsDataModule
from lightning_fold.modules import Classifier

EXAMPLES = torch.rand(4, 1, 8, 8)


def rewritten(trained, method, **options):
    module = Classifier.load_from_checkpoint(trained / "checkpoints" / "last.ckpt")
    getattr(lf, method)(module.network.eval(), EXAMPLES, **options)
    return module.network


@pytest.mark.parametrize(
    ("method", "words", "options"),
    [
        ("fold", ["--keep", "0.5", "--of", "channels"], {"keep": 0.5, "of": "channels"}),
        ("prune", ["--keep", "0.75", "--of", "channels"], {"keep": 0.75, "of": "channels"}),
        ("factorize", ["--keep", "0.6"], {"keep": 0.6}),
        ("minimize", [], {}),
    ],
)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_file_holds_what_the_function_makes(run, trained, tmp_path, method, words, options, suffix):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    output = tmp_path / f"small.{suffix}"
    run(
        "compress",
        "--checkpoint",
        trained / "checkpoints" / "last.ckpt",
        "--method",
        method,
        *words,
        "--output",
        output,
    )
    torch.testing.assert_close(lf.load(output).state_dict(), rewritten(trained, method, **options).state_dict())


def test_table_holds_what_is_measured(run, trained, accuracy, capsys):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    run("compress", "--checkpoint", checkpoint, "--method", "factorize", "--keep", "0.5", "--output", "x.pt")
    printed = capsys.readouterr().out
    dense, small = Classifier.load_from_checkpoint(checkpoint).network, lf.load("x.pt")
    for network in (dense, small):
        assert f"{accuracy(network):.2%}" in printed
        assert f"{lf.count_parameters(network):,}" in printed
        assert f"{lf.count_flops(network, EXAMPLES[:1]):,}" in printed
    assert f"{lf.count_parameters(dense) / lf.count_parameters(small):.1f}x smaller" in printed


def test_a_written_file_is_read_without_its_run(run, trained, tmp_path):
    """The file says with what shapes the network runs, so it is compressed again where no configuration is."""
    half = ["--keep", "0.5", "--of", "channels"]
    run("compress", "--checkpoint", trained / "checkpoints" / "last.ckpt", *half, "--output", "once.pt")
    run("compress", "--checkpoint", "once.pt", "--method", "prune", *half, "--output", "twice.pt")
    assert lf.count_parameters(lf.load("twice.pt")) < 0.7 * lf.count_parameters(lf.load("once.pt"))
    assert read_run(tmp_path / "twice.pt").inputs[0].shape[1:] == (1, 8, 8)


def test_mistake_in_the_configuration_names_its_file(mistake, trained, tmp_path):
    (tmp_path / "other.yaml").write_text("data: {class_path: lightning_fold.data.DigitDataModule}")
    checkpoint = trained / "checkpoints" / "last.ckpt"
    error, _ = mistake("compress", "--checkpoint", checkpoint, "--output", "small.pt", "--config", "other.yaml")
    assert "section 'data' of 'other.yaml'" in error


def test_network_of_one_output_is_compressed_without_data(run, tmp_path):
    """What is not measured needs no classes."""
    arguments = {"in_features": 6, "hidden": [8], "out_features": 1}
    path, name = tmp_path / "one.pt", "lightning_fold.models.MLP"
    lf.save(lf.models.MLP(**arguments), path, network=name, network_args=arguments, example_inputs=torch.zeros(2, 6))
    run("compress", "--checkpoint", "one.pt", "--keep", "0.5", "--of", "channels", "--output", "small.pt")
    assert lf.load("small.pt").layers[-1].in_features == 4


def test_repair_is_that_of_the_function(run, resnet):
    resnet(fitted=False)
    words = ["--method", "prune-least-squares", "--of", "channels", "--repair", "data", "--output", "x.pt"]
    run("compress", "--checkpoint", "dense.pt", *words)
    dense = read_run("dense.pt")
    data = {"batches": list(dense.training_batches(50)), "repair": "data"}
    lf.prune(dense.network, dense.inputs, keep=0.5, of="channels", compensate="least-squares", **data)
    torch.testing.assert_close(lf.load("x.pt").state_dict(), dense.network.state_dict())


@pytest.mark.parametrize(
    ("method", "options", "fitted", "helps"),
    [
        ("factorize", {"keep": 0.5}, True, True),
        ("factorize", {"keep": 0.9}, False, False),
        ("minimize", {}, True, False),
    ],
)
def test_repair_that_makes_held_out_outputs_worse_is_undone(run, resnet, capsys, method, options, fitted, helps):
    resnet(fitted)
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    run("compress", "--checkpoint", "dense.pt", "--method", method, *words, "--repair", "data", "--output", "x.pt")
    assert ("note: BatchNorm re-estimation was undone" in capsys.readouterr().out) != helps
    batches, dense, plain = list(DigitsDataModule().train_dataloader()), lf.load("dense.pt"), lf.load("dense.pt")
    data = {"batches": batches} if method == "factorize" else {}
    getattr(lf, method)(plain, batches[0][0][:32], **options, **data)
    repaired, (held_out, _) = deepcopy(plain), batches[-1]
    lf.repair(repaired, batches[:-1])
    with torch.no_grad():
        errors = [nn.functional.mse_loss(network(held_out), dense(held_out)) for network in (plain, repaired)]
    assert (errors[1] < errors[0]) == helps
    torch.testing.assert_close(lf.load("x.pt").state_dict(), (repaired if helps else plain).state_dict())


class Foreign(lightning.LightningModule):
    """A LightningModule that knows nothing of this package, and whose network has no name."""

    def __init__(self, width: int = 20):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self.backbone(batch[0]), batch[1]))


@pytest.fixture
def foreign(tmp_path):
    module = Foreign(width=24)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "foreign.ckpt")
    model = {"class_path": f"{Foreign.__module__}.Foreign", "init_args": {"width": 24}}
    data = {"class_path": "lightning_fold.data.DigitsDataModule"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    return module


def test_network_without_a_name_becomes_a_program(run, foreign, mistake):
    error, _ = mistake("compress", "--checkpoint", "foreign.ckpt", "--output", "small.ckpt")
    assert "torch.export program: --output small.pt2" in error
    run("compress", "--checkpoint", "foreign.ckpt", "--keep", "0.5", "--of", "channels", "--output", "small.pt2")
    lf.fold(foreign.backbone, EXAMPLES, keep=0.5, of="channels")
    with pytest.raises(ValueError, match="trusted=True"):
        lf.load("small.pt2")
    for batch in (EXAMPLES, EXAMPLES[:1]):
        torch.testing.assert_close(lf.load("small.pt2", trusted=True)(batch), foreign.backbone(batch))


def test_checkpoint_of_another_class_is_refused(foreign, mistake, tmp_path):
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["model"]["init_args"]["width"] = 25
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    error, _ = mistake("compress", "--checkpoint", "foreign.ckpt", "--output", "small.pt2")
    assert "is the checkpoint of another network" in error and "3 such differences" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--method", "minimize", "--keep", "0.3"], "takes no keep=0.3; expected no size, since the zeros"),
        (["--method", "minimize", "--of", "flops"], "takes no of='flops'; expected no size, since the zeros"),
        (
            ["--method", "factorize", "--skip", "[head]"],
            "takes no skip=['head']; expected skip with prune and fold only",
        ),
        (["--method", "factorize", "--repair", "data-free"], "takes no repair='data-free'; expected 'default', 'none'"),
        (
            ["--method", "prune", "--repair", "data-free"],
            "prune(repair='data-free'): this repair needs merged channels",
        ),
        (["--keep", "1.5"], "fold(keep=1.5): expected a share in (0, 1]"),
        (["--keep", '{"layers.0": 0.5}'], "fold(keep={'layers.0': 0.5}): expected a share of the whole network's"),
        (["--keep", '{"nothing": 1, "*": 0.5}'], "'nothing' matches no layer whose size can change"),
        (["--method", "folds"], "expected one of 'prune', 'prune-l1', 'prune-least-squares', 'fold'"),
        (["--keep", "0.001"], "fold(keep=0.001): one channel in every width that can shrink"),
        (["--method", "factorize", "--keep", "0.001"], "rank 1 in every layer still leaves 0."),
        (["--keep", "half"], "key 'keep'"),
        (["--ratio", "0.3"], "--ratio"),
        (["--output", "small.onnx"], "expected a file that ends in .ckpt, .pt, .safetensors or .pt2"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--rato", "0.3"], "--rato"),
    ],
)
def test_mistake_is_reported_in_one_line(trained, mistake, words, expected):
    checkpoint = trained / "checkpoints" / "last.ckpt"
    error, hint = mistake("compress", "--checkpoint", checkpoint, "--output", "small.pt", *words)
    assert expected in error
    assert "compress --help" in hint or "paths" in hint


def test_bad_files_are_reported_in_one_line(trained, mistake, tmp_path):
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "alone.ckpt").write_bytes(whole)
    torch.save({"epoch": 3}, tmp_path / "other.ckpt")
    for name, expected in (
        ("none.ckpt", "no such file"),
        ("half.ckpt", "truncated"),
        ("alone.ckpt", "no configuration beside the file"),
        ("other.ckpt", "expected a Lightning checkpoint"),
    ):
        assert expected in mistake("compress", "--checkpoint", name, "--output", "small.pt")[0]
    assert not (tmp_path / "small.pt").exists()


def test_weights_that_are_not_finite_are_refused(trained, mistake, tmp_path):
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name][0] = float("nan")
    torch.save(content, tmp_path / "bad.ckpt")
    before = (tmp_path / "bad.ckpt").read_bytes()
    for method in ("prune", "fold", "factorize"):
        words = ["--method", method, "--config", trained / "config.yaml", "--output", "small.pt"]
        error, _ = mistake("compress", "--checkpoint", "bad.ckpt", *words)
        assert f"error: {method}(" in error and "holds NaN or infinity; expected finite weights" in error
    assert (tmp_path / "bad.ckpt").read_bytes() == before and not (tmp_path / "small.pt").exists()


@pytest.mark.parametrize("name", ["last.ckpt", "../checkpoints/last.ckpt", "link.ckpt"])
def test_checkpoint_is_not_overwritten(trained, mistake, tmp_path, name):
    folder = shutil.copytree(trained, tmp_path / "run") / "checkpoints"
    (folder / "link.ckpt").symlink_to("last.ckpt")
    before = (folder / "last.ckpt").read_bytes()
    for checkpoint, output in (("last.ckpt", name), (name, "last.ckpt")):
        words = ["--checkpoint", folder / checkpoint, "--output", f"{folder}/{output}"]
        assert "the checkpoint itself" in mistake("compress", *words)[0]
    assert (folder / "last.ckpt").read_bytes() == before
