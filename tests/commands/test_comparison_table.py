import pytest

from lightning_fold.commands.comparison_table import tables_of
from lightning_fold.commands.rows import DENSE, Row, Trial

SIZE = {"checkpoint": "runs/a.pt", "digest": "", "of": "parameters", "skip": "", "repair": "default", "limit": 0}


def rows(metric, value, sizes=(0.5,)):
    trials = [Trial(method=DENSE, keep=1.0, split="test", monitor=metric, **SIZE)]
    trials += [Trial(method="fold", keep=size, split="test", monitor=metric, **SIZE) for size in sizes]
    return [Row(trial, parameters=1000, accuracy=value) for trial in trials]


@pytest.mark.parametrize(
    "metric", ["accuracy/test", "val_acc", "MulticlassAccuracy", "auroc", "test/F1", "acc1", "top_5"]
)
def test_shares_are_shown_in_per_cent(metric):
    title, table = tables_of(rows(metric, 0.43))
    assert title.endswith(f"{metric} 43.00%")
    assert "43.00%" in next(table.columns[1].cells)


@pytest.mark.parametrize("metric", ["loss/test", "perplexity/test", "accumulated", "rmse"])
def test_other_metrics_are_shown_as_they_are(metric):
    assert tables_of(rows(metric, 0.43))[0].endswith(f"{metric} 0.43")


def test_sizes_that_are_close_have_headings_of_their_own():
    sizes = [0.505, 0.5, 0.29]
    _, table = tables_of(rows("accuracy/test", 0.9, sizes))
    headings = [str(column.header).split("%")[0] for column in table.columns[1:]]
    assert [float(heading) for heading in headings] == pytest.approx([100 * size for size in sizes])


def test_reasons_are_no_markup():
    dense, row = rows("accuracy/test", 0.9)
    failed = Row(row.trial, note="expected x[/red] in [bold]")
    assert tables_of([dense, failed])[-1] == r"fold at 50%: expected x\[/red] in \[bold]"
