"""One network measured, and two of them side by side."""

from dataclasses import replace
from io import StringIO

import lightning
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fold.complexity import Latency
from lightning_fold.evaluation.measurement import Measurement, latency_note, measure, side_by_side
from lightning_fold.modules import Classifier

X = torch.eye(4)


class Data(lightning.LightningDataModule):
    """The largest input is the class of all validation examples and of three of the four test examples."""

    def val_dataloader(self):
        return DataLoader(TensorDataset(X[:2], torch.tensor([0, 1])), 2)

    def test_dataloader(self):
        return DataLoader(TensorDataset(X, torch.tensor([0, 1, 2, 0])), 4)


def _module() -> Classifier:
    network = nn.Linear(4, 4, bias=False)
    nn.init.eye_(network.weight)
    return Classifier(network, num_classes=4)


def test_numbers_are_those_of_the_network() -> None:
    module = _module()
    found, latency = measure(module.network, X, 99, module, Data(), seed=1)
    assert (found.parameters, found.flops, found.bytes) == (16, 2 * 16, 99)  # of one example, not of all four
    assert (found.val_accuracy, found.test_accuracy) == (1.0, 0.75)
    assert found.metrics["accuracy/test"] == 0.75 and found.latency_ms == 1000 * latency
    assert latency.batch == 1 and latency.device == "cpu"


def test_without_data_there_are_no_accuracies() -> None:
    module = _module()
    found, _ = measure(module.network, X, 0, module, None)
    assert found.val_accuracy is None and found.test_accuracy is None and found.metrics == {}


LATENCY = Latency(0.001, device="cpu", dtype="float32", batch=1, threads=1, runs=3)
DENSE = Measurement(0.75, 0.5, 1000, 2000, 4000, 4.0, {"accuracy/test": 0.75, "f1/test": 0.5, "loss/test": 1.0})
SMALL = replace(DENSE, test_accuracy=0.5, parameters=100, flops=1000, latency_ms=3.0, metrics={"f1/test": 0.25})


def test_half_of_the_saving_in_operations_arrives() -> None:
    note = latency_note(DENSE, SMALL, LATENCY)
    assert note == LATENCY.conditions() | {"share_of_flop_saving": pytest.approx((1 - 3 / 4) / (1 - 1 / 2))}
    assert latency_note(DENSE, DENSE, LATENCY)["share_of_flop_saving"] is None


def _shown(before: Measurement, after: Measurement) -> list[list[str]]:
    """The words of each line of the table."""
    console = Console(file=StringIO(), width=200)
    console.print(side_by_side(before, after, latency_note(before, after, LATENCY), "left", "right"))
    return [[word for word in line.replace("│", " ").split() if word] for line in console.file.getvalue().splitlines()]


def test_table_shows_both_and_their_ratio() -> None:
    shown = _shown(DENSE, SMALL)
    assert ["parameters", "1,000", "100", "10.0x"] in shown and [
        "ms",
        "per",
        "example",
        "4.000",
        "3.000",
        "1.3x",
    ] in shown
    assert ["test", "accuracy", "75.00%", "50.00%", "-25.00", "points"] in shown
    assert ["f1/test", "0.5", "0.25", "-0.25"] in shown and not any("loss/test" in line for line in shown)
    assert any("50%" in line for line in shown)


def test_table_leaves_out_what_was_not_measured() -> None:
    shown = _shown(replace(DENSE, val_accuracy=None), SMALL)
    assert not any("validation" in line for line in shown) and any("test" in line for line in shown)
