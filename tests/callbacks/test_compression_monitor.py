import csv
import re
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import lightning_fold as lf
from lightning_fold.callbacks import ChannelPruning, CompressionMonitor, CompressionRun, SqueezeRelease
from lightning_fold.callbacks.compression_monitor import flatten, layer_widths
from lightning_fold.storage.checkpoints import record_of


def squeeze():
    return SqueezeRelease(dense_epochs=1, cycles=1, shrink_epochs=1, masked_epochs=1, sparsity=[0.6])


@pytest.fixture(scope="module")
def monitored(make_classifier, make_trainer, tmp_path_factory):
    """A run of five epochs with the monitor, and what TensorBoard reads from its event file."""
    from lightning_fold.modules import Classifier

    folder = tmp_path_factory.mktemp("logs")
    module, monitor = make_classifier(), CompressionMonitor()
    assert isinstance(module, Classifier)
    trainer = make_trainer(5, squeeze(), monitor, logger=TensorBoardLogger(folder, name=""))
    trainer.fit(module, make_data())
    events = EventAccumulator(trainer.log_dir, size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return module, monitor, events


def make_data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(96, 1, 6, 6, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, inputs.flatten(1)[:, :3].argmax(1))
    import lightning

    class Data(lightning.LightningDataModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(data, batch_size=32)

        def val_dataloader(self):
            return torch.utils.data.DataLoader(data, batch_size=48)

    return Data()


def values(events, tag):
    return [event.value for event in events.Scalars(tag)]


def test_tags_hold_the_size_of_the_network(monitored):
    module, _, events = monitored
    dense, small = record_of(module).dense.parameters, lf.count_parameters(module.network)
    assert values(events, "compression/parameters") == [dense] * 3 + [small] * 3  # the last one is where it ends
    assert values(events, "compression/factor") == pytest.approx([1] * 3 + [dense / small] * 3)
    example = torch.rand(1, 1, 6, 6)
    assert values(events, "compression/flops")[-1] == lf.count_flops(module.network, example)
    assert values(events, "compression/flops")[0] == 2 * (36 * 12 + 12 * 10 + 10 * 3)
    assert values(events, "compression/sparsity") == pytest.approx([0, 0, 0.6, 0, 0, 0], abs=0.01)


def test_tags_hold_the_accuracies(monitored):
    module, _, events = monitored
    assert values(events, "compressed/accuracy") == values(events, "accuracy/val")[3:]
    dense = record_of(module).dense.metrics["accuracy/val"]
    assert dense == pytest.approx(values(events, "accuracy/val")[0])
    assert values(events, "dense/accuracy") == pytest.approx([dense] * 4)


def test_figures_are_there(monitored):
    _, monitor, events = monitored
    assert set(events.Tags()["images"]) == {"compression/widths", "compression/spectra", "compression/accuracy"}
    assert events.Images("compression/widths")[0].width > 300
    assert [row["epoch"] for row in monitor.history] == list(range(5))


@pytest.mark.parametrize(
    ("callbacks", "lr", "expected"),
    [([squeeze], 0.02, ["dense, 3 layers", "as it ends, 3 layers"]), ([], 1e30, ["as it ends, 0 of 3 layers"])],
    ids=["squeezed", "diverged"],
)
def test_spectra_are_those_of_finite_weights(make_classifier, make_trainer, data, tmp_path, callbacks, lr, expected):
    """Not of tables and masks, which are buffers."""
    module = make_classifier(optimizer=partial(torch.optim.SGD, lr=lr), lr_scheduler=None)
    module.network.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))
    module.network.register_buffer("table", torch.rand(6, 6))
    monitor = CompressionMonitor()
    trainer = make_trainer(3, *(make() for make in callbacks), monitor, logger=TensorBoardLogger(tmp_path))
    trainer.fit(module, data)
    assert trainer.state.finished
    spectra = monitor._figures(CompressionRun(trainer, module))["spectra"]
    assert [axes.get_title() for axes in spectra.axes[:-1]] == expected


def test_history_holds_the_widths(monitored):
    module, monitor, _ = monitored
    assert monitor.history[0]["widths"] == {"layers.2": 12, "layers.4": 10, "layers.6": 3}
    found = {name: m.out_features for name, m in module.network.named_modules() if isinstance(m, nn.Linear)}
    assert monitor.history[-1]["widths"] == found != monitor.history[0]["widths"]


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_it_changes_nothing(make_classifier, make_trainer, data, network):
    without, with_monitor = make_classifier(network), make_classifier(network)
    make_trainer(4, squeeze()).fit(without, data)
    trainer = make_trainer(4, CompressionMonitor(), squeeze())
    trainer.fit(with_monitor, data)
    torch.testing.assert_close(without.state_dict(), with_monitor.state_dict(), rtol=0, atol=0)
    shown = trainer.progress_bar_metrics
    assert shown["kparams"] == pytest.approx(lf.count_parameters(with_monitor.network) / 1000)
    assert shown["factor"] == pytest.approx(record_of(without).dense.parameters / lf.count_parameters(without.network))


def test_it_works_alone_and_without_an_accuracy(make_plain, make_trainer, data):
    module, monitor = make_plain("conv"), CompressionMonitor(monitor="nothing")
    make_trainer(1, monitor).fit(module, data)
    (row,) = monitor.history
    assert row["parameters"] == lf.count_parameters(module.backbone)
    assert "accuracy" not in row


class Plain(Logger):
    """A logger whose experiment takes neither figures nor pages."""

    name, version, experiment = "plain", 0, object()

    def __init__(self):
        super().__init__()
        self.metrics = {}

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_every_logger_gets_the_final_sizes(make_classifier, make_trainer, data, tmp_path):
    """A rewrite after the last validation shows, also with loggers that take no figures."""
    module, plain = make_classifier(), Plain()
    loggers = [CSVLogger(tmp_path, name="csv"), plain, TensorBoardLogger(tmp_path, name="board")]
    make_trainer(1, ChannelPruning(keep=0.5, of="channels"), CompressionMonitor(), logger=loggers).fit(module, data)
    small = lf.count_parameters(module.network)
    assert small < record_of(module).dense.parameters
    assert plain.metrics["compression/parameters"] == small
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        written = [row["compression/parameters"] for row in csv.DictReader(file) if row["compression/parameters"]]
    assert float(written[-1]) == small
    events = EventAccumulator(str(tmp_path / "board" / "version_0"))
    events.Reload()
    assert values(events, "compression/parameters")[-1] == small
    assert "compression/spectra" in events.Tags()["images"]


def test_progress_bar_ends_with_the_network_as_it_ends(make_classifier, make_trainer, data, capfd):
    module, monitor = make_classifier(), CompressionMonitor()
    trainer = make_trainer(
        1, ChannelPruning(keep=0.5, of="channels"), monitor, TQDMProgressBar(), enable_progress_bar=True
    )
    trainer.fit(module, data)
    frames = "".join(capfd.readouterr())
    small, dense = lf.count_parameters(module.network), record_of(module).dense.parameters
    shown = re.findall(r"kparams=([\d.]+), factor=([\d.]+)", frames)
    assert tuple(map(float, shown[0])) == pytest.approx((dense / 1000, 1), rel=1e-2)
    assert tuple(map(float, shown[-1])) == pytest.approx((small / 1000, dense / small), rel=1e-2)


def test_nested_hyperparameters_become_flat():
    nested = {"_class_path": "x", "lr": 0.1, "net": {"widths": [1, 2], "bias": None, "_private": 1}, "name": "a"}
    assert flatten(nested) == {"lr": 0.1, "net/widths": "[1, 2]", "name": "a"}


def test_widths_of_a_single_layer():
    assert layer_widths(nn.Linear(3, 4)) == {"Linear": 4}
