"""Trials: which are planned, and what comes back of them."""

from pathlib import Path

import pytest

from lightning_fold.commands import trials
from lightning_fold.commands.rows import DENSE, Row, read_rows
from lightning_fold.errors import ArgumentError


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in ("a.ckpt", "b.ckpt", "c.ckpt")]
    for file, content in zip(files, ("one", "two", "one"), strict=True):
        file.write_text(content)
    return files


def _plan(files: list[Path], **options) -> list[trials.Trial]:
    return trials.plan(files, ["prune", "fold"], [0.5, 0.25], ["none", "data"], **options)


def test_plan_is_every_combination_behind_its_dense_network(checkpoints: list[Path]) -> None:
    planned = _plan(checkpoints[:2], split="val", skip=["a", "b"])
    assert len(planned) == 2 * (1 + 2 * 2 * 2) == len(set(planned))
    assert [trial.method for trial in planned[::9]] == [DENSE, DENSE] and planned[0].keep == 1.0
    assert {(t.split, t.monitor, t.skip) for t in planned} == {("val", "accuracy/val", "a b")}
    assert all(trial.dense in planned for trial in planned)


def test_digest_is_that_of_the_content_and_of_the_data(checkpoints: list[Path], tmp_path: Path) -> None:
    first, second, copy = (_plan([file])[0].digest for file in checkpoints)
    assert first == copy != second
    for text, same in (("{seed_everything: 1}", True), ("{data: {class_path: x}}", False)):
        (tmp_path / "config.yaml").write_text(text)
        assert (_plan(checkpoints[:1])[0].digest == first) is same


@pytest.mark.parametrize("size", [0, 1, -0.5, 2])
def test_size_outside_its_range_is_refused(checkpoints: list[Path], size: float) -> None:
    with pytest.raises(ArgumentError, match=r"sizes=\["):
        trials.plan(checkpoints, ["prune"], [0.5, size], ["none"])


@pytest.fixture
def measured(monkeypatch) -> list[trials.Trial]:
    """The trials that were measured; those of 0.25 fail."""
    found = []

    def run_trial(trial, config=None):
        found.append(trial)
        return Row(trial, note="no") if trial.keep == 0.25 else Row(trial, accuracy=trial.keep)

    monkeypatch.setattr(trials, "run_trial", run_trial)
    return found


def test_equal_files_are_measured_once_and_failures_again(checkpoints, measured, tmp_path) -> None:
    planned, table, done = _plan(checkpoints), tmp_path / "table.csv", []
    rows = trials.run_trials(planned, table, done=lambda: done.append(1))
    assert [row.trial for row in rows] == planned and len(done) == len(planned)
    assert len(measured) == 2 * 9 and {row.trial for row in read_rows(table)} == set(planned)
    assert all(row.failed == (row.trial.keep == 0.25) for row in rows)
    measured.clear()
    assert trials.run_trials(planned, table, done=lambda: None) == rows
    assert {trial.keep for trial in measured} == {0.25} and len(measured) == 2 * 4


def test_nothing_else_is_measured_of_a_network_whose_dense_form_fails(checkpoints, monkeypatch, tmp_path) -> None:
    planned = _plan(checkpoints[:2])
    bad = planned[0].checkpoint
    monkeypatch.setattr(
        trials, "run_trial", lambda t, config=None: Row(t, accuracy=None if t.checkpoint == bad else 0.5, note="why")
    )
    rows = trials.run_trials(planned, tmp_path / "table.csv", done=lambda: None)
    assert [row.trial for row in rows] == [planned[0], *planned[9:]]
    with pytest.raises(ArgumentError, match="why"):
        trials.run_trials(planned[:9], tmp_path / "other.csv", done=lambda: None)
