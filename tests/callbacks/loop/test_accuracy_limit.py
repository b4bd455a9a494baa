"""The limit on the drop of a metric."""

from types import SimpleNamespace

import pytest
from torch import nn

from lightning_fold.callbacks.loop.accuracy_limit import AccuracyLimit
from lightning_fold.storage.checkpoints import Snapshot

DENSE = Snapshot.take(nn.Linear(2, 1), {"acc": 0.75})


@pytest.mark.parametrize(
    ("drop", "metric", "exceeded"), [(0.25, 0.5, False), (0.25, 0.4375, True), (0.0, 0.75, False), (0.0, 0.7, True)]
)
def test_drop_is_measured_from_the_dense_network(drop, metric, exceeded):
    assert AccuracyLimit("Call", drop, "acc").exceeded(DENSE, metric) is exceeded


def test_without_a_limit_or_a_dense_network_nothing_is_exceeded():
    assert not AccuracyLimit("Call", 1.0, "acc").exceeded(DENSE, 0.0)
    assert not AccuracyLimit("Call", 1, "other").exceeded(DENSE, None)
    assert not AccuracyLimit("Call", 0.1, "acc").exceeded(None, 0.0)


@pytest.mark.parametrize(("monitor", "metric"), [("acc", None), ("other", 0.5)])
def test_metric_that_was_not_measured_is_named(monitor, metric):
    with pytest.raises(ValueError, match=rf"Call\(max_accuracy_drop=0\.1, monitor='{monitor}'\): no such metric"):
        AccuracyLimit("Call", 0.1, monitor).exceeded(DENSE, metric)


def test_validation_must_log_it():
    trainer = SimpleNamespace(callback_metrics={"acc": 0.5})
    AccuracyLimit("Call", 0.1, "acc").check_logged(trainer)
    AccuracyLimit("Call", 1.0, "other").check_logged(trainer)
    with pytest.raises(ValueError, match="monitor='other'"):
        AccuracyLimit("Call", 0.1, "other").check_logged(trainer)


@pytest.mark.parametrize("drop", [-0.1, 1.1])
def test_drop_out_of_range_is_refused(drop):
    with pytest.raises(ValueError, match=rf"Call\(max_accuracy_drop={drop}\): expected a share"):
        AccuracyLimit("Call", drop, "acc")
