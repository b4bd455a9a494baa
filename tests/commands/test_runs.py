"""A trained network read back from a file."""

from pathlib import Path

import lightning
import pytest
import torch
from torch import nn

import lightning_fold as lf
from lightning_fold.commands.runs import Configuration, read_config, read_run
from lightning_fold.data import DigitsDataModule
from lightning_fold.errors import ArgumentError, MissingFileError
from lightning_fold.modules import Classifier

X = torch.randn(3, 4)


def test_configuration_is_found_beside_the_file_or_above_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("{seed_everything: 1}")
    assert read_config(file) == Configuration() and read_config(file).seed == 42
    for folder, seed in ((tmp_path / "run", 2), (file.parent, 3)):
        (folder / "config.yaml").write_text(f"{{seed_everything: {seed}}}")
        found = read_config(file)
        assert found.file == folder / "config.yaml" and found.seed == seed
    assert read_config(file, tmp_path / "config.yaml").seed == 1


@pytest.mark.parametrize("seed", ["true", "null", "a"])
def test_what_is_no_seed_is_not_taken_for_one(tmp_path: Path, seed: str) -> None:
    (tmp_path / "config.yaml").write_text(f"seed_everything: {seed}")
    assert read_config(tmp_path / "x").seed == 42


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ArgumentError, match=r"config\.yaml"):
        read_config(tmp_path / "x.ckpt")


def test_section_is_built_and_a_wrong_one_is_named() -> None:
    section = {"class_path": "lightning_fold.data.DigitsDataModule", "init_args": {"batch_size": 7}}
    built = Configuration(Path("a.yaml"), {"data": section}).build(lightning.LightningDataModule, "data")
    assert isinstance(built, DigitsDataModule) and built.batch_size == 7
    wrong = section | {"init_args": {"batch_sise": 7}}
    with pytest.raises(ArgumentError, match=r"data.*a\.yaml"):
        Configuration(Path("a.yaml"), {"data": wrong}).build(lightning.LightningDataModule, "data")


def test_file_of_a_network_is_read_with_its_example_and_name(tmp_path: Path) -> None:
    network = nn.Linear(4, 2)
    arguments = {"in_features": 4, "out_features": 2}
    lf.save(network, tmp_path / "x.pt", network="torch.nn.Linear", network_args=arguments, example_inputs=X)
    run = read_run(tmp_path / "x.pt", data=False)
    inputs = run.inputs[0] if isinstance(run.inputs, tuple) else run.inputs
    assert (run.name, run.arguments, run.seed) == ("torch.nn.Linear", arguments, 42)
    assert torch.equal(run.network(X), network(X)) and inputs.shape[1:] == (4,) and not run.module.training
    with pytest.raises(ArgumentError, match=r"x\.pt.*--config"):
        _ = run.data


def test_checkpoint_gives_the_module_the_data_and_the_same_batches(trained: Path) -> None:
    run = read_run(trained / "checkpoints" / "last.ckpt")
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert isinstance(run.module, Classifier) and isinstance(run.data, DigitsDataModule)
    assert all(torch.equal(content[f"network.{key}"], value) for key, value in run.network.state_dict().items())
    first, again = run.training_batches(2), run.training_batches(2)
    assert len(first) == 2
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert torch.equal(run.inputs, first[0][0][:32])


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.ckpt"):
        read_run(tmp_path / "none.ckpt")
    torch.save({"a": 1}, tmp_path / "foreign.ckpt")
    with pytest.raises(ArgumentError, match=r"foreign\.ckpt"):
        read_run(tmp_path / "foreign.ckpt")
    (tmp_path / "x.pt2").write_text("")
    with pytest.raises(ArgumentError, match=r"x\.pt2"):
        read_run(tmp_path / "x.pt2")
