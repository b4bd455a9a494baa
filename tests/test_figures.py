import numpy as np
import pytest
import torch

from lightning_fold.figures import accuracy_figure, comparison_figure, spectrum_figure, width_figure

HISTORY = [
    {"epoch": 0, "parameters": 1000, "accuracy": 0.9, "widths": {"a": 10, "b": 4}},
    {"epoch": 1, "parameters": 400, "accuracy": 0.8, "widths": {"a": 5, "b": 4}},
    {"epoch": 3, "parameters": 100, "accuracy": 0.7, "widths": {"a": 2, "c.0": 3}},
]


def test_widths_are_shares_of_the_first_width_of_each_layer():
    axes = width_figure(HISTORY).axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    expected = [[1, 0.5, 0.2], [1, 1, np.nan], [np.nan, np.nan, 1]]
    np.testing.assert_array_equal(shown, expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (10, 2)", "b (4, gone)", "c.0 (3, 3)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "3"]


def test_accuracy_stands_against_parameters():
    axes = accuracy_figure([*HISTORY, {"epoch": 4, "parameters": 50, "widths": {}}]).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), [[1000, 0.9], [400, 0.8], [100, 0.7]])
    np.testing.assert_array_equal(axes.collections[0].get_array(), [0, 1, 3])
    assert axes.get_xscale() == "log"


def test_spectra_are_the_singular_values_over_the_largest():
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    state = {
        "a": rotation @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0])),
        "bias": torch.ones(4),
        "zero": torch.zeros(2, 3),
    }
    (axes, *_) = spectrum_figure({"dense": state}).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1, 0.5, 0.25, 0.125], rtol=1e-5)
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [0, 0])
    assert axes.get_title() == "dense, 2 layers"


def test_spectra_leave_out_what_has_none():
    finite = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    state = {
        "a": finite,
        "bias": torch.full((3,), float("nan")),
        "nan": torch.where(finite > 2, float("nan"), finite),
        "inf": finite / 0,
        "wide": torch.zeros(0, 5),
        "long": torch.zeros(5, 0),
        "large": finite.double() * 1e300,
        "b": finite.half(),
    }
    first, second, _ = spectrum_figure({"dense": state, "diverged": {"nan": state["nan"]}}).axes
    assert [line.get_ydata().tolist() for line in first.lines] == [pytest.approx([1, 2 / 3, 1 / 3])] * 2
    assert (first.get_title(), second.get_title()) == ("dense, 2 of 7 layers", "diverged, 0 of 1 layers")


def test_comparison_has_a_line_for_each_method_in_order_of_size():
    points = [("dense", 100, 0.9), ("fold", 70, 0.8), ("fold", 30, 0.5), ("fold + data", 30, 0.6), ("prune", 30, 0.4)]
    figure = comparison_figure({"a": points, "b": [("dense", 50, 0.7)]}, "accuracy/test")
    first, second = (axes for axes in figure.axes if axes.axison)
    lines = {line.get_label(): line for line in first.lines}
    np.testing.assert_array_equal(lines["fold"].get_xydata(), [[30, 0.5], [70, 0.8]])
    assert lines["fold"].get_color() == lines["fold + data"].get_color() != lines["prune"].get_color()
    np.testing.assert_array_equal(lines["dense"].get_xydata(), [[100, 0.9]])
    assert (first.get_title(), second.get_title(), first.get_ylabel()) == ("a", "b", "accuracy/test")


def test_legend_names_what_any_panel_shows():
    networks = {"a": [("dense", 50, 0.7)], "b": [("fold", 70, 0.8)], "c": [("prune", 30, 0.4), ("fold", 30, 0.5)]}
    (legend,) = comparison_figure(networks, "accuracy/test").legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert sorted(shown) == sorted({method for points in networks.values() for method, *_ in points})
