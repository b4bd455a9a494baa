"""The report says what happened, as values and as text."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

import lightning_fold as lf
from tests.zoo import ZOO, build


def test_report_of_a_known_rewrite() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    report = lf.minimize(model, torch.randn(3, 5, dtype=torch.float64))
    assert (report.method, report.parameters_before, report.parameters_after) == ("minimize", 34, 26)
    assert report.factor == pytest.approx(34 / 26)
    assert (report.flops_before, report.flops_after) == (2 * 3 * (20 + 8), 2 * 3 * (15 + 6))
    changes = {change.tensor: (change.before, change.after) for change in report.changes}
    assert changes == {"0.weight": ((4, 5), (3, 5)), "0.bias": ((4,), (3,)), "2.weight": ((2, 4), (2, 3))}
    with pytest.raises(FrozenInstanceError):
        report.method = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_text_names_numbers_tensors_and_reasons() -> None:
    model = build("unruled", "rows")
    report = lf.minimize(model, ZOO["unruled"].inputs())
    text = str(report)
    before, after = f"{report.parameters_before:,}", f"{report.parameters_after:,}"
    assert f"minimize: {before} -> {after} parameters ({report.factor:.2f}x), relative error" in text
    assert "first.weight" in text and "12 x 9" in text
    assert "channels of second.weight: the network (cumsum) operator cumsum has no rule" in " ".join(text.split())
    assert "\x1b" not in text


def test_reasons_with_brackets_are_printed_as_they_are() -> None:
    kept = (lf.Kept("a.weight", 2, "shape [red] has no rule"), lf.Kept("b.weight", 1, "why"))
    report = lf.RewriteReport("fold", 4, 2, kept=kept)
    assert "kept 2 channels of a.weight: shape [red] has no rule" in str(report) and report.factor == 2
    assert "kept 1 channel of b.weight: why" in str(report)
