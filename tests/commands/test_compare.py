import csv
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset, random_split

import lightning_fold as lf
from lightning_fold.commands import trials
from lightning_fold.commands.compare import find_checkpoints
from lightning_fold.commands.methods import METHODS, apply, method_of, takes
from lightning_fold.commands.rows import Row, Trial, read_rows, write_rows
from lightning_fold.commands.runs import read_run
from lightning_fold.data import DigitsDataModule
from lightning_fold.modules import Classifier
from tests.commands.conftest import NETWORK_ARGS


@pytest.fixture
def rows():
    def read(path):
        with Path(path).open(newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture
def checkpoint(trained):
    return trained / "checkpoints" / "last.ckpt"


SIZED = [name for name in METHODS if takes(method_of("compare", name), "keep")]


def test_rows_are_what_the_functions_make(run, checkpoint, accuracy, rows, tmp_path):
    run("compare", "--checkpoint", checkpoint, "--methods", SIZED, "--sizes", "[0.5]", "--output", "out")
    found = rows("out/comparison.csv")
    assert [(row["method"], row["keep"]) for row in found] == [("dense", "1.0"), *((name, "0.5") for name in SIZED)]
    dense = Classifier.load_from_checkpoint(checkpoint).network
    for row in found:
        network = Classifier.load_from_checkpoint(checkpoint).network.eval()
        if row["method"] != "dense":
            method_of("compare", row["method"])(network, torch.rand(4, 1, 8, 8), keep=float(row["keep"]))
        assert int(row["parameters"]) == lf.count_parameters(network)
        assert float(row["share"]) == pytest.approx(lf.count_parameters(network) / lf.count_parameters(dense), abs=1e-4)
        assert int(row["flops"]) == lf.count_flops(network, torch.rand(1, 1, 8, 8))
        assert float(row["accuracy"]) == pytest.approx(accuracy(network))
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    assert events.Tags()["images"] == ["comparison"]


def test_table_names_network_methods_and_sizes(run, checkpoint, accuracy, capsys):
    run("compare", "--checkpoint", checkpoint, "--methods", "[factorize]", "--sizes", "[0.5]", "--output", "out")
    printed = capsys.readouterr().out
    dense = Classifier.load_from_checkpoint(checkpoint).network
    assert f"last.ckpt: {lf.count_parameters(dense):,} parameters, accuracy/test {accuracy(dense):.2%}" in printed
    assert "50% of the parameters" in printed and "factorize" in printed


def test_rows_that_are_there_are_not_measured_again(run, checkpoint, rows, monkeypatch):
    words = ["compare", "--checkpoint", checkpoint, "--methods", "[factorize]", "--output", "out"]
    run(*words, "--sizes", "[0.5]")
    first = rows("out/comparison.csv")
    measured, measure = [], trials.run_trial

    def counted(trial, config=None):
        measured.append((trial.method, trial.keep, trial.repair))
        return measure(trial, config)

    monkeypatch.setattr(trials, "run_trial", counted)
    run(*words, "--sizes", "[0.5]")
    assert measured == [] and rows("out/comparison.csv") == first
    run(*words, "--sizes", "[0.5,0.4]")
    run(*words, "--sizes", "[0.5]", "--repair", "[default,data]")
    run(*words, "--sizes", "[0.5]", "--limit_batches", "1")
    assert measured == [
        ("factorize", 0.4, "default"),
        ("factorize", 0.5, "data"),
        ("dense", 1.0, "none"),
        ("factorize", 0.5, "default"),
    ]
    assert rows("out/comparison.csv")[:2] == first


def test_two_that_write_one_table_keep_each_others_rows(tmp_path):
    """Each knows the rows that were there when it began, and its own."""
    table = tmp_path / "comparison.csv"
    trial = Trial("x.pt", "0", "", 0.5, "parameters", "", "none", "test", "accuracy/test", 0)
    first, second, third = (Row(replace(trial, method=method)) for method in ("fold", "prune", "factorize"))
    write_rows([replace(first, accuracy=0.5), third], table)
    write_rows([replace(second, accuracy=0.6), first, replace(third, accuracy=0.7)], table)
    assert {row.trial.method: row.accuracy for row in read_rows(table)} == {"fold": 0.5, "prune": 0.6, "factorize": 0.7}


def test_another_network_of_the_same_name_is_measured_again(run, checkpoint, rows, tmp_path):
    module = Classifier.load_from_checkpoint(checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    shutil.copy(checkpoint.parents[1] / "config.yaml", tmp_path)
    words = ["compare", "--checkpoint", "copy.ckpt", "--methods", "[factorize]", "--sizes", "[0.5]", "--output", "out"]
    torch.save(content, tmp_path / "copy.ckpt")
    run(*words)
    content["state_dict"] = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    torch.save(content, tmp_path / "copy.ckpt")
    trials._cached_run.cache_clear()
    run(*words)
    dense = [float(row["accuracy"]) for row in rows("out/comparison.csv") if row["method"] == "dense"]
    assert len(dense) == 2 and dense[0] > 0.5 > dense[1]


def test_an_interruption_keeps_the_rows_so_far(run, checkpoint, rows, monkeypatch):
    measure = trials.run_trial

    def interrupted(trial, config=None):
        if trial.keep == 0.4:
            raise KeyboardInterrupt
        return measure(trial, config)

    monkeypatch.setattr(trials, "run_trial", interrupted)
    words = [
        "compare",
        "--checkpoint",
        checkpoint,
        "--methods",
        "[factorize]",
        "--sizes",
        "[0.5,0.4]",
        "--output",
        "out",
    ]
    with pytest.raises(KeyboardInterrupt):
        run(*words, "--sizes", "[0.5,0.4]")
    assert [float(row["keep"]) for row in rows("out/comparison.csv")] == [1.0, 0.5]
    monkeypatch.undo()


def test_what_a_method_cannot_do_is_reported_and_tried_again(run, checkpoint, rows, capsys):
    words = ["compare", "--checkpoint", checkpoint, "--methods", "[factorize]", "--output", "out"]
    run(*words, "--sizes", "[0.5,0.01]")
    (failed,) = [row for row in rows("out/comparison.csv") if row["note"]]
    assert failed["keep"] == "0.01" and failed["accuracy"] == ""
    assert "factorize at 1%: factorize(keep=0.01): " in " ".join(capsys.readouterr().out.split())


def test_channels_are_ranks_in_low_rank(run, checkpoint, rows):
    words = ["--of", "channels", "--methods", "[factorize,prune]", "--sizes", "[0.25]", "--output", "out"]
    run("compare", "--checkpoint", checkpoint, *words)
    for row in rows("out/comparison.csv")[1:]:
        network = Classifier.load_from_checkpoint(checkpoint).network.eval()
        getattr(lf, row["method"])(network, torch.rand(4, 1, 8, 8), keep=0.25, of="channels")
        assert int(row["parameters"]) == lf.count_parameters(network)


@pytest.mark.parametrize(
    ("repair", "expected"), [("default", "data-free"), ("none", "none"), ("data-free", "data-free")]
)
def test_repair_of_fold_is_the_one_asked_for(run, resnet, rows, repair, expected):
    resnet(fitted=True)
    words = ["--methods", "[fold]", "--sizes", "[0.5]", "--repair", f"[{repair}]", "--output", "out"]
    run("compare", "--checkpoint", "dense.pt", *words)
    found, network = read_run("dense.pt"), lf.load("dense.pt")
    report = lf.fold(network, found.inputs, keep=0.5, repair=expected)
    row = rows("out/comparison.csv")[1]
    assert row["repair"] == repair
    assert row["note"] == "; ".join(note.replace("; ", ", ") for note in report.notes)


def test_method_from_outside_with_arguments(run, checkpoint, rows, tmp_path, monkeypatch):
    (tmp_path / "outside_halves.py").write_text(
        "import lightning_fold as lf\n\n\nclass Halves:\n    def __init__(self, importance):\n"
        "        self.importance = importance\n\n"
        "    def __call__(self, model, example_inputs, *, keep=0.5):\n"
        "        return lf.prune(model, example_inputs, keep=keep / 2, importance=self.importance)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = "outside_halves.Halves(importance='l1')"
    run("compare", "--checkpoint", checkpoint, "--methods", f'["{method}"]', "--sizes", "[0.8]", "--output", "out")
    network = Classifier.load_from_checkpoint(checkpoint).network.eval()
    lf.prune(network, torch.rand(4, 1, 8, 8), keep=0.4, importance="l1")
    (row,) = rows("out/comparison.csv")[1:]
    assert row["method"] == method and int(row["parameters"]) == lf.count_parameters(network)


def test_network_that_is_not_finite_has_rows_that_say_so(run, checkpoint, rows, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"][next(iter(content["state_dict"]))][0] = float("nan")
    torch.save(content, tmp_path / "bad.ckpt")
    shutil.copy(checkpoint.parents[1] / "config.yaml", tmp_path)
    words = ["--methods", "[prune,fold,factorize]", "--sizes", "[0.5]", "--output", "out"]
    run("compare", "--checkpoint", "bad.ckpt", *words)
    dense, *others = rows("out/comparison.csv")
    assert dense["note"] == "" and [row["method"] for row in others] == ["prune", "fold", "factorize"]
    assert all(row["accuracy"] == "" and "expected finite weights" in row["note"] for row in others)


def test_files_that_are_no_networks_leave_the_others_alone(run, trained, rows, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "many" / "a") / "checkpoints"
    torch.save({"x": torch.zeros(2)}, folder / "aaa.pt")
    (folder / "broken.ckpt").write_bytes(b"nothing")
    (tmp_path / "many" / "b").mkdir()
    shutil.copy(folder / "last.ckpt", tmp_path / "many" / "b")
    words = ["compare", "--checkpoint", "many", "--methods", "[factorize]", "--output", "out"]
    for sizes, printed in (("[0.5]", "factorize"), ("[0.5,0.4]", "40% of the parameters")):
        run(*words, "--sizes", sizes)
        shown = " ".join(capsys.readouterr().out.split())
        assert printed in shown and "a/checkpoints/aaa.pt: 'many/a/checkpoints/aaa.pt': expected a Lightning" in shown
    notes = {row["checkpoint"]: row["note"] for row in rows("out/comparison.csv") if row["accuracy"] == ""}
    assert sorted(notes) == [
        f"many/{name}" for name in ("a/checkpoints/aaa.pt", "a/checkpoints/broken.ckpt", "b/last.ckpt")
    ]
    assert "cannot be read" in notes["many/a/checkpoints/broken.ckpt"] and "--config" in notes["many/b/last.ckpt"]


def test_what_anyone_raises_is_a_row_that_says_so(run, checkpoint, rows, monkeypatch):
    real, raised = trials.evaluate, iter([None, RuntimeError("out of\nmemory"), AssertionError("odd"), None])

    def evaluate(*args, **options):
        if error := next(raised):
            raise error
        return real(*args, **options)

    monkeypatch.setattr(trials, "evaluate", evaluate)
    words = ["--methods", "[factorize]", "--sizes", "[0.7,0.5,0.4]", "--output", "out"]
    run("compare", "--checkpoint", checkpoint, *words)
    found = rows("out/comparison.csv")
    assert [row["note"] for row in found] == ["", "RuntimeError: out of memory", "AssertionError: odd", ""]
    assert [bool(row["accuracy"]) for row in found] == [True, False, False, True]


def test_rows_that_came_before_a_process_ended_are_kept(checkpoint, mistake, rows, monkeypatch):
    measure = trials.run_trial

    def ended(trial, config=None):
        if trial.keep == 0.5:
            raise SystemError("the process\nwas killed")
        return measure(trial, config)

    monkeypatch.setattr(trials, "run_trial", ended)
    monkeypatch.setattr(trials, "ProcessPoolExecutor", lambda workers, *rest: ThreadPoolExecutor(1))
    words = ["--methods", "[factorize]", "--sizes", "[0.5,0.4]", "--output", "out", "--workers", "2"]
    error, _ = mistake("compare", "--checkpoint", checkpoint, *words)
    assert "1 of 2 rows were lost" in error and "(SystemError: the process was killed)" in error
    assert [float(row["keep"]) for row in rows("out/comparison.csv")] == [1.0, 0.4]


WORKER = """
import time
from multiprocessing import get_context
from lightning_fold.commands import trials

def work():
    trials._prepare_worker(1)
    print("working", flush=True)
    time.sleep(60)

get_context("fork").Process(target=work).start()
time.sleep(60)
"""


def test_workers_end_with_a_process_that_is_killed():
    """Both write to one pipe, which ends once neither of them lives."""
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"working\n"
    process.kill()
    assert process.communicate(timeout=20) == (b"", None)


def test_what_a_method_notes_is_shown_and_not_measured_again(run, resnet, rows, capsys, monkeypatch):
    resnet(fitted=False)
    words = ["--methods", "[factorize]", "--sizes", "[0.9,0.8]", "--repair", "[data]", "--output", "out"]
    run("compare", "--checkpoint", "dense.pt", *words)
    first = rows("out/comparison.csv")
    for row in first[1:]:
        found = read_run("dense.pt")
        share, batches = float(row["keep"]), found.training_batches(50)
        (note,) = apply("factorize", found.network, found.inputs, repair="data", batches=batches, keep=share).notes
        assert row["note"] == note and row["accuracy"]
    short = note.partition(":")[0]
    expected = f"factorize + data at 90%, factorize + data at 80%: {short}"
    assert expected in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(trials, "run_trial", None)
    run("compare", "--checkpoint", "dense.pt", *words)
    assert rows("out/comparison.csv") == first


def test_note_is_one_whatever_is_in_it(run, checkpoint, capsys, monkeypatch):
    def noted(*args, **options):
        return replace(apply(*args, **options), notes=("one half; the other half", "another: 3"))

    monkeypatch.setattr(trials, "apply", noted)
    words = ["--methods", "[prune]", "--sizes", "[0.5]", "--output", "out"]
    run("compare", "--checkpoint", checkpoint, *words)
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("prune at 50%: ")] == [
        "prune at 50%: one half, the other half",
        "prune at 50%: another",
    ]


class DrawnAnew(lightning.LightningDataModule):
    """Draws its splits whenever it is set up, from the global generator."""

    drawn = []

    def setup(self, stage):
        inputs, targets = DigitsDataModule().splits.test.__getitems__(range(360))
        self.train, self.test = random_split(TensorDataset(inputs, targets), [300, 60])
        self.drawn.append(self.test.indices)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=50, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=60)


@pytest.mark.parametrize("seed", [42, 3])
def test_every_network_meets_the_same_images(run, rows, tmp_path, seed):
    example = {"example_inputs": torch.rand(1, 1, 8, 8)}
    network, name = lf.models.MLP(**NETWORK_ARGS), "lightning_fold.models.MLP"
    lf.save(network, tmp_path / "x.pt", network=name, network_args=NETWORK_ARGS, **example)
    data = {"data": {"class_path": f"{DrawnAnew.__module__}.DrawnAnew"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data | ({} if seed == 42 else {"seed_everything": seed})))
    DrawnAnew.drawn.clear()
    words = ["--methods", "[factorize]", "--sizes", "[0.5,0.4]", "--repair", "[default,data]", "--output", "out"]
    run("compare", "--checkpoint", "x.pt", *words)
    run("compress", "--checkpoint", "x.pt", "--output", "small.pt")
    first, second = (read_run("x.pt").training_batches(2) for _ in range(2))
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left[0], right[0])
    torch.manual_seed(seed)
    expected = random_split(range(360), [300, 60])[1].indices
    assert len(DrawnAnew.drawn) > 10 and all(indices == expected for indices in DrawnAnew.drawn)


def test_names_are_whole_in_a_narrow_terminal(run, checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run("compare", "--checkpoint", checkpoint, "--methods", "[prune-least-squares]", "--output", "out")
    assert "│ prune-least-squares │" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_in_processes_gives_the_same_rows(run, trained, rows, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / "many" / name)
    data = {"class_path": "lightning_fold.data.DigitsDataModule", "init_args": {"batch_size": 100}}
    (tmp_path / "many" / "b" / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    words = ["compare", "--checkpoint", "many", "--methods", SIZED, "--sizes", "[0.5]"]
    run(*words, "--output", "one")
    run(*words, "--output", "two", "--workers", "2")
    one, two = (
        sorted(({k: v for k, v in row.items() if k != "seconds"} for row in rows(f"{out}/comparison.csv")), key=str)
        for out in ("one", "two")
    )
    assert one == two and len(one) == 2 + 2 * len(SIZED)


@pytest.mark.parametrize("pattern", ["runs", "runs/version_*", "runs/**/*.pt", "runs/**"])
def test_patterns_of_files_and_of_folders(tmp_path, pattern):
    files = [tmp_path / "runs" / f"version_{i}" / "dense.pt" for i in range(2)]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
        file.with_name("log.txt").touch()
    assert find_checkpoints(str(tmp_path / pattern)) == files


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--checkpoint", "nowhere/*.ckpt"], "'nowhere/*.ckpt': there is no such file"),
        (["--sizes", "[1.5]"], "compare(sizes=[1.5]): expected shares of the parameters in (0, 1)"),
        (["--sizes", "0.5"], "key 'sizes': expected a list, found 0.5: --sizes \"[0.5]\""),
        (["--methods", "fold,prune"], "key 'methods': expected a list, found fold,prune: --methods \"[fold,prune]\""),
        (["--skip", "*attn*"], "key 'skip': expected a list, found *attn*: --skip \"['*attn*']\""),
        (["--methods", "[luck]"], "compare(method='luck'): expected one of 'prune', "),
        (["--methods", "[minimize]"], "compare(methods=['minimize']): expected methods that take a size"),
        (["--methods", "[]"], "compare(methods=[]): expected at least one"),
        (["--sizes", "[]"], "compare(sizes=[]): expected at least one"),
        (["--repair", "[]"], "compare(repair=[]): expected at least one"),
        (["--workers", "0"], "compare(workers=0): expected a whole number of at least 1"),
        (["--limit_batches", "-1"], "compare(limit_batches=-1): expected a whole number of at least 0"),
        (
            ["--monitor", "accuracy/tset"],
            "'accuracy/tset'): the test data gives ['accuracy/test', 'loss/test']",
        ),
    ],
)
def test_mistake_is_reported_in_one_line(checkpoint, mistake, words, expected):
    assert expected in mistake("compare", "--checkpoint", checkpoint, "--output", "out", *words)[0]


def test_foreign_table_is_left_alone(checkpoint, mistake, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.csv").write_text("a,b\n1,2\n")
    assert "is not a table of compare" in mistake("compare", "--checkpoint", checkpoint, "--output", "out")[0]
    assert (tmp_path / "out" / "comparison.csv").read_text() == "a,b\n1,2\n"
