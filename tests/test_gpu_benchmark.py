"""benchmarks/gpu.py in small, and the functions that it depends on where no second try is possible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_pack import read_picture, unpack_wheels, write_picture
from benchmarks.gpu_parts import cifar, correctness, latency, plan, resnet, rewriting
from benchmarks.gpu_parts.files import join, split
from benchmarks.gpu_parts.results import Results

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def images(tmp_path):
    """A folder with six small files as CIFAR-10 has them, and the images of the first."""
    generator = np.random.default_rng(0)
    (tmp_path / cifar.FOLDER).mkdir()
    drawn = {}
    for name in (*cifar.TRAINING, cifar.TEST):
        drawn[name] = generator.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
        cifar.write_batch(tmp_path / cifar.FOLDER / name, drawn[name], generator.integers(0, 10, 40).tolist())
    return tmp_path, drawn


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 1000])
def test_parts_join_to_the_same_file(tmp_path, length):
    content = os.urandom(length)
    (tmp_path / "net.pt").write_bytes(content)
    parts = split(tmp_path / "net.pt", limit=100)
    assert not (tmp_path / "net.pt").exists() and all(part.stat().st_size <= 100 for part in parts)
    assert len(parts) == max(1, -(-length // 100))
    assert join(tmp_path / "net.pt").read_bytes() == content


def test_missing_part(tmp_path):
    (tmp_path / "net.pt").write_bytes(bytes(30))
    split(tmp_path / "net.pt", limit=10)[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"found the parts \[1, 3\]"):
        join(tmp_path / "net.pt")


def test_a_failing_part_costs_its_row_and_everything_else_is_on_the_disk(tmp_path):
    results = Results(tmp_path, {"device": "none"})
    with results.guard("first", "one"):
        results.add("first", "one", accuracy=94.5678)
        results.add("first", "two", ok=False, accuracy=1.0)
    with results.guard("second", "three"):
        raise RuntimeError("out of | memory\nhere")
    results.add("third", "four", parameters=11_173_962)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(row["name"], row["ok"]) for row in found["rows"]] == [
        ("one", True),
        ("two", False),
        ("three", False),
        ("four", True),
    ]
    assert "raise RuntimeError" in found["rows"][2]["traceback"] and set(found["about"]["seconds"]) == {
        "first: one",
        "second: three",
    }
    lines = (tmp_path / "results.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and "part" not in line]
    assert rows[0] == "| first | one | yes | accuracy 94.57 |"
    assert rows[2] == "| second | three | NO | error RuntimeError: out of / memory here |"
    assert rows[3] == "| third | four | yes | parameters 11,173,962 |"
    assert results.failed == ["first: two", "second: three"]


def test_epochs_that_fit():
    assert [plan.epochs_that_fit(seconds, 5.0, 60) for seconds in (0, 4.9, 52, 1000)] == [1, 1, 10, 60]


def test_learning_rate_is_a_whole_schedule_for_any_length():
    for steps in (7, 100):
        rates = [plan.learning_rate(step / steps, 0.4) for step in range(steps + 1)]
        assert rates[0] == pytest.approx(0.08) and rates[-1] == 0 and max(rates) <= 0.4
    assert plan.learning_rate(0.15, 0.4) == pytest.approx(0.4)


def test_training_ends_in_time_though_epochs_take_longer_than_measured(images, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(plan.time, "monotonic", lambda: float(next(clock)))  # each look takes ten seconds
    training = resnet.Training(resnet.TINY, cifar.read(images[0]), torch.device("cpu"))
    monkeypatch.setattr(training, "_epoch", lambda epoch, epochs: 0.0)
    found = training.run(100.0, 10.0, smooth=False)
    assert 1 < found["epochs"] < 10


def test_strength_falls_with_the_number_of_steps(images, monkeypatch):
    training = resnet.Training(resnet.TINY, cifar.read(images[0]), torch.device("cpu"))
    monkeypatch.setattr(training, "_epoch", lambda epoch, epochs: 0.0)
    for epochs in (1, 2):
        strength = training.run(1e6, 5e5 if epochs == 2 else 1e6, smooth=True)["strength"]
        assert strength == pytest.approx(min(resnet.LEAD / (0.05 * epochs * training.steps), 0.003))
    steps = 30 * 97
    assert 1e-4 < resnet.LEAD / (resnet.FULL.rate * steps) < 5e-4


def test_augmented_images_are_shifted_and_mirrored_ones(images):
    folder, drawn = images
    data = cifar.read(folder)
    torch.manual_seed(0)
    found, targets = data.augmented(torch.tensor([3] * 200))
    assert found.shape == (200, 3, 32, 32) and torch.equal(targets, data.train_targets[[3] * 200])
    image = torch.from_numpy(drawn["data_batch_1"][3])
    padded = torch.tensor([124, 116, 104], dtype=torch.uint8).repeat(40, 40, 1)
    padded[4:-4, 4:-4] = image
    shifts = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    possible = cifar.normalise(torch.stack([*shifts, *(shift.flip(1) for shift in shifts)]))
    places = [(possible == each).flatten(1).all(1).nonzero().flatten().tolist() for each in found]
    assert all(len(place) == 1 for place in places) and len({place[0] for place in places}) > 80


def test_plain_images_and_a_limit(images):
    folder, drawn = images
    data = cifar.read(folder, 50)
    assert len(data.train) == len(data.train_targets) == 50 and len(data.test) == 40
    every = cifar.normalise(torch.from_numpy(np.concatenate([drawn[name] for name in cifar.TRAINING])[:50]))
    found = data.plain(50)
    assert torch.equal(found.flatten(1).sum(1).sort().values, every.flatten(1).sum(1).sort().values)


def test_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_1.*test_batch; give the folder that holds"):
        cifar.read(tmp_path)


@pytest.mark.parametrize("count", [40, 200])
def test_pictures_hold_the_images_without_loss(tmp_path, count):
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    write_picture(tmp_path / "batch", images, list(range(count)))
    found, targets = read_picture(tmp_path / "batch")
    assert np.array_equal(found, images) and targets == list(range(count))
    about = json.loads((tmp_path / "batch.json").read_text())
    (tmp_path / "batch.json").write_text(json.dumps(about | {"sha256": "0"}))
    with pytest.raises(ValueError, match="not those that were packed"):
        read_picture(tmp_path / "batch")


def test_wheels_of_what_is_installed_are_left_alone(tmp_path):
    import zipfile

    (tmp_path / "wheels").mkdir()
    for name in ("torch", "missing"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
    unpack_wheels(tmp_path, lambda name: name == "torch")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["missing"]


def test_outcomes_of_tests_are_rows(tmp_path):
    source = """
import pytest
def test_passes(record_property): record_property("error", 0.5)
def test_fails(): assert 1 == 2
@pytest.mark.skip(reason="none")
def test_skipped(): pass
"""
    (tmp_path / "test_few_adam.py").write_text(source)
    results = Results(tmp_path / "out", {})
    limit = plan.Deadline.after(300)
    correctness.measure(results, tmp_path, limit, cuda=False, tests=str(tmp_path / "test_few_adam.py"))
    rows = {row["name"].rpartition("::")[2]: row for row in results.rows}
    assert rows["test_passes"]["ok"] and rows["test_passes"]["error"] == 0.5
    assert not rows["test_fails"]["ok"] and "assert 1 == 2" in rows["test_fails"]["error"]
    assert rows["test_skipped"]["ok"] and rows["test_skipped"]["skipped"] == "yes"
    assert len(rows) == 3


def test_tests_end_at_the_limit_and_the_rows_before_it_remain(tmp_path, monkeypatch):
    code = "import time; print('begins', flush=True); time.sleep(600)"
    assert correctness.run([sys.executable, "-c", code], 3.0) == (False, "begins\n")
    monkeypatch.setattr(correctness, "run", lambda command, seconds: (False, ""))
    line = {"name": "tests/test_a.py::test_b", "outcome": "passed", "seconds": 1.0, "figures": {}, "error": ""}
    (tmp_path / "outcomes.jsonl").write_text(json.dumps(line) + "\n")
    results = Results(tmp_path / "out", {})
    correctness.measure(results, tmp_path, plan.Deadline.after(1), cuda=True)
    assert [(row["name"], row["ok"]) for row in results.rows] == [("test_a.py::test_b", True), ("time", False)]
    assert "ended by the limit after 1 tests" in results.rows[1]["error"]


def test_rewrites_are_written_and_named(tmp_path):
    network = rewriting.Network("lightning_fold.models.CifarResNet", {"depth": 8, "widths": [4, 6, 8]}, (3, 8, 8))
    job = rewriting.Job(network, "factorize", tmp_path / "small.pt", 0.6)
    done = rewriting.run(job)
    small, dense = torch.load(tmp_path / "small.pt", weights_only=True)["state_dict"], network.load()
    kept = sum(v.numel() for k, v in small.items() if "running" not in k and "tracked" not in k)
    assert kept / sum(p.numel() for p in dense.parameters()) == pytest.approx(done.parameters)
    assert 0.4 < done.parameters <= 0.6 and "FLOPs kept" in done.figures()


def test_equal_shapes_are_timed_once(tmp_path):
    setting = latency.Setting(latency.SMALL, batches=(1,), compiled=(), runs=1, backend="eager")
    jobs = [rewriting.Job(network, "dense", tmp_path / "a.pt") for network in setting.networks.values()]
    done = rewriting.run(jobs[0])
    timing = latency.Timing(Results(tmp_path, {}), setting, torch.device("cpu"), plan.Deadline.after(60))
    timing.eager("one", done)
    timing.eager("one", done)
    assert [("ms" in row, row.get("shapes")) for row in timing.results.rows] == [
        (True, None),
        (False, "those of dense"),
    ]


def test_no_gpu_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no CUDA device; --tiny runs everything in small" in capsys.readouterr().err


@pytest.mark.slow
def test_tiny(images, tmp_path):
    """The whole command: every part has its rows, nothing fails, and the parts of the networks join."""
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--data", str(images[0]), "--output", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "o" / "results.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {"correctness", resnet.PART, latency.PART}
    names = {row["name"] for row in rows}
    assert {"smooth: factorize to 30 %", "smooth: fold to 50 %", "plain: fold to 50 %"} <= names
    assert {"ResNet-8: prune, eager, batch 1", "ResNet-8: factorize, compiled, batch 4"} <= names
    join(tmp_path / "o" / "smooth.pt")
    assert all(row["ok"] for row in rows)
