import re
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
import yaml

import lightning_fold
from lightning_fold.cli import main
from lightning_fold.commands.listing import COMMANDS, function_of
from lightning_fold.commands.parser import first_line
from lightning_fold.modules import Classifier

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = {
    "model": {
        "class_path": "lightning_fold.modules.Classifier",
        "init_args": {
            "network_args": {"in_features": 64, "hidden": [20], "out_features": 10},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        },
    },
    "data": {"class_path": "lightning_fold.data.DigitsDataModule"},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
}
MODEL = CONFIG["model"]["init_args"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in an empty folder with a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-fold"])

    def run(subcommand, *arguments, config=CONFIG):
        Path("config.yaml").write_text(yaml.safe_dump(config))
        main([subcommand, "--config", "config.yaml", *arguments])

    return run


def changed(**sections):
    """Return the configuration with the arguments of some sections replaced."""
    return {name: {**section, **sections.get(name, {})} for name, section in CONFIG.items()}


def with_model(**arguments):
    return changed(model={"init_args": {**MODEL, **arguments}})


def test_fit_then_test_from_the_checkpoint(run, tmp_path, capsys):
    run("fit")
    (checkpoint,) = tmp_path.glob("runs/version_0/checkpoints/epoch*.ckpt")
    assert list(tmp_path.glob("runs/version_0/events*"))
    trained = Classifier.load_from_checkpoint(checkpoint, weights_only=True)
    assert trained.configure_optimizers().defaults["lr"] == 0.1
    assert trained.configure_optimizers().defaults["weight_decay"] == 0
    assert trained.hparams["network_args"] == MODEL["network_args"]
    capsys.readouterr()
    run(
        "test", "--ckpt_path", str(checkpoint), config=with_model(network_args={**MODEL["network_args"], "hidden": [9]})
    )
    assert "accuracy/test" in capsys.readouterr().out


def test_checkpoint_made_in_python_is_tested_by_the_command(run, tmp_path, capsys):
    model = Classifier(network_args={**MODEL["network_args"], "hidden": [7, 6]}, optimizer=torch.optim.Adam)
    trainer = lightning.Trainer(max_epochs=0, accelerator="cpu", logger=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "python.ckpt")
    run("test", "--ckpt_path", "python.ckpt")
    assert "accuracy/test" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(run, tmp_path):
    for seed in ("1", "1", "2"):
        run("fit", "--seed_everything", seed)
    one, same, other = (
        Classifier.load_from_checkpoint(
            next(tmp_path.glob(f"runs/version_{version}/checkpoints/epoch*.ckpt"))
        ).state_dict()
        for version in range(3)
    )
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_print_config_is_a_complete_configuration(run, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("fit", "--print_config")
    assert exit_info.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seed_everything"] == 42
    assert printed["trainer"]["logger"]["init_args"]["save_dir"] == "runs"
    assert printed["model"]["init_args"]["network_args"] == MODEL["network_args"]
    run("fit", config={**printed, "trainer": {**printed["trainer"], "fast_dev_run": True}})


def test_classifier_is_the_default_model(run, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--print_config", config={"data": CONFIG["data"]})
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"] == "lightning_fold.modules.Classifier"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (with_model(labelsmoothing=0.1), ["'labelsmoothing'", "did you mean 'label_smoothing'"]),
        (with_model(num_classes="ten"), ["'model.num_classes'", "expected int, found ten"]),
        (with_model(num_classes=1), ["Classifier(num_classes=1)", "at least 2"]),
        (with_model(network="resnet1"), ["network='resnet1'", "Did you mean"]),
        (with_model(network_args={"in_features": 64}), ["network_args accepts in_features, hidden"]),
        (with_model(optimizer={"class_path": "torch.optim.SDG"}), ["'model.optimizer'", "'SDG'", "did you mean 'SGD'"]),
        (changed(model={"class_path": "lightning_fold.modules.Classifer"}), ["'model'", "'Classifier'"]),
        (changed(data={"class_path": "MNISTDatamodule"}), ["'data'", "did you mean", "'MNISTDataModule'"]),
        (changed(data={"init_args": {"batch_size": 0}}), ["DigitsDataModule(batch_size=0)"]),
        (
            changed(trainer={"callbacks": [{"class_path": "SqueezeRelease", "init_args": {"sparsity": 0.5}}]}),
            ["sparsity': expected a list, found 0.5: --", 'sparsity "[0.5]"'],
        ),
        (changed(trainer={"max_epoch": 3}), ["'trainer.max_epoch'", "did you mean 'max_epochs'"]),
        (changed(trainer={"max_epochs": "three"}), ["'trainer.max_epochs'", "expected int, found three"]),
        ({**CONFIG, "trainr": {"max_epochs": 3}}, ["'trainr.max_epochs'", "did you mean 'trainer'"]),
        (
            changed(data={"class_path": "lightning_fold.data.MNISTDataModule", "init_args": {"download": False}}),
            ["data_dir='data'", "set data.init_args.download to true"],
        ),
    ],
)
def test_mistake_is_reported_in_one_line_with_the_key_and_the_fix(run, capsys, config, expected):
    with pytest.raises(SystemExit) as exit_info:
        run("fit", config=config)
    assert exit_info.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert all(words in error for words in expected), error


EVERY_COMMAND = ["fit", "validate", "test", "predict", "compress", "compare", "export"]


def listed(text):
    """The commands that a text lists, each in a line with what it does."""
    return re.findall(r"^  (\w+) +[A-Z].*\.$", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fitt"], "error: there is no command 'fitt'; did you mean 'fit'?"),
        (["compres", "--checkpoint", "x"], "error: there is no command 'compres'; did you mean 'compress'"),
        (["shrink"], f"error: there is no command 'shrink'; expected one of {', '.join(EVERY_COMMAND)}"),
        ([], f"error: no command is given; expected one of {', '.join(EVERY_COMMAND)}"),
    ],
)
def test_unknown_command_is_reported_with_all_there_are(capsys, arguments, expected):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    shown = capsys.readouterr().err
    assert listed(shown) == EVERY_COMMAND
    assert shown.splitlines()[-2].startswith(expected) and shown.splitlines()[-1].startswith("hint: ")


def test_configuration_may_come_before_the_command(run, tmp_path):
    Path("first.yaml").write_text(yaml.safe_dump({"fit": CONFIG}))
    main(["--config", "first.yaml", "fit", "--trainer.fast_dev_run", "true"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--config", "none.yaml", "fit"], "none.yaml"), (["fit", "--config", "none.yaml"], "none.yaml")],
)
def test_wrong_command_is_reported(run, capsys, arguments, expected):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert expected in capsys.readouterr().err


def test_missing_checkpoint_is_reported(run, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("test", "--ckpt_path", "none.ckpt")
    assert exit_info.value.code == 2
    assert "none.ckpt" in capsys.readouterr().err


def test_installed_command_shows_its_help():
    shown = subprocess.run([Path(sys.executable).parent / "lightning-fold", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert listed(shown.stdout) == EVERY_COMMAND


@pytest.mark.parametrize("command", ["compress", "compare", "export"])
def test_commands_after_training_explain_their_options(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert shown.startswith(f"usage: lightning-fold {command}") and "--config CONFIG" in shown
    assert "Lightning checkpoint" in " ".join(shown.split()) or "a folder that holds some" in " ".join(shown.split())


@pytest.mark.parametrize("command", ["compress", "compare"])
def test_every_list_is_shown_as_it_is_written(capsys, command):
    """And ``compare``, which compares sizes, does not offer the method that takes none."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    _, *shown = re.split(r"^  --", capsys.readouterr().out, flags=re.MULTILINE)
    options = {option.partition(" ")[0]: " ".join(option.split()) for option in shown}
    lists = {name: option for name, option in options.items() if "type: list" in option}
    assert set(lists) == ({"methods", "sizes", "skip", "repair"} if command == "compare" else {"skip"})
    assert all(re.search(r'"\[[\w,.*]+\]"', option.partition("(type: ")[0]) for option in lists.values())
    assert "minimize" not in lists.get("methods", "")


def test_mistake_in_a_callback_is_reported_once(capsys):
    """The parser tries a callback, and a list of callbacks."""
    with pytest.raises(SystemExit):
        main(["fit", "--trainer.callbacks", "ChannelFolding", "--trainer.callbacks.compensat", "bias"])
    error, _ = capsys.readouterr().err.splitlines()
    assert error == "error: key 'trainer.callbacks': Option 'compensat' is not accepted; did you mean 'compensate'?"


def test_help_lists_the_first_line_of_each_command() -> None:
    for name, (_, about) in COMMANDS.items():
        assert about == first_line(function_of(name))


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_and_version_import_neither_torch_nor_lightning(word: str) -> None:
    unwanted = "bool({'torch', 'lightning'} & {*sys.modules})"
    code = f"import sys; from lightning_fold.cli import main; main([{word!r}]); sys.exit({unwanted})"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert ("fit" if word == "--help" else lightning_fold.__version__) in done.stdout
