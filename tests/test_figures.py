import numpy as np

from lightning_fold.figures import accuracy_figure, width_figure

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
