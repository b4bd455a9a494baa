"""Rows: the CSV file gives back what was written."""

from dataclasses import replace
from pathlib import Path

import pytest

from lightning_fold.commands.rows import DENSE, Row, Trial, read_rows, write_rows
from lightning_fold.errors import ArgumentError

TRIAL = Trial("a.ckpt", "0f", "prune", 0.5, "flops", "head *.norm", "data", "val", "accuracy/val", 3)
ROW = Row(TRIAL, 12, 0.25, 34, 0.1 + 0.2, 1.5, 'kept "x", y\nand ü')


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [ROW, Row(TRIAL.dense, accuracy=0.0), Row(replace(TRIAL, keep=0.1), note="failed")]
    write_rows(rows, tmp_path / "new" / "table.csv")
    assert read_rows(tmp_path / "new" / "table.csv") == rows
    assert read_rows(tmp_path / "none.csv") == []


def test_rows_of_others_stay_and_those_of_the_same_trial_are_replaced(tmp_path: Path) -> None:
    table, other = tmp_path / "table.csv", Row(replace(TRIAL, keep=0.1), accuracy=0.5)
    write_rows([ROW, other], table)
    better = replace(ROW, accuracy=0.9)
    write_rows([better], table)
    assert read_rows(table) == [better, other]


def test_failure_does_not_replace_a_result(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    write_rows([ROW], table)
    write_rows([Row(TRIAL, note="no memory")], table)
    assert read_rows(table) == [ROW]


def test_writing_twice_is_writing_once(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    write_rows([ROW], table)
    once = table.read_bytes()
    write_rows(read_rows(table), table)
    assert table.read_bytes() == once


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_foreign_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ArgumentError, match=r"x\.csv"):
        read_rows(tmp_path / "x.csv")


def test_key_is_everything_but_the_name_of_the_file() -> None:
    assert replace(TRIAL, checkpoint="b").key == TRIAL.key
    others = {"digest": "1", "method": "fold", "keep": 0.1, "of": "channels", "skip": "", "repair": "none"}
    others |= {"split": "test", "monitor": "loss/val", "limit": 0}
    assert all(replace(TRIAL, **{name: value}).key != TRIAL.key for name, value in others.items())


def test_dense_trial_is_its_own() -> None:
    dense = TRIAL.dense
    assert (dense.method, dense.keep, dense.repair) == (DENSE, 1.0, "none") and dense.dense == dense
    assert Row(TRIAL).failed and not Row(TRIAL, accuracy=0.0).failed
