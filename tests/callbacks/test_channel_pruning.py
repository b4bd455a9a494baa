"""ChannelPruning alone; what all callbacks that rewrite once share is in rewriting/test_once.py."""

import pytest

from lightning_fold.callbacks import ChannelPruning
from tests.callbacks.conftest import assert_same_network


def test_looks_at_the_same_batches_when_resumed_after_the_last_epoch(
    make_classifier, make_trainer, data, every_epoch, tmp_path
):
    """The last epoch's order, not the first one's."""
    unbroken, resumed = make_classifier("conv"), make_classifier("conv")
    looking = {"keep": 0.6, "of": "channels", "batches": 2, "compensate": "least-squares", "repair": "data"}
    make_trainer(2, ChannelPruning(**looking), every_epoch).fit(unbroken, data)
    last = tmp_path / "all" / "1.ckpt"
    make_trainer(2, ChannelPruning(**looking)).fit(
        resumed, type(data)(batch_size=32), ckpt_path=last, weights_only=True
    )
    assert_same_network(unbroken.network, resumed.network)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChannelPruning(keep=-0.1), r"ChannelPruning\(keep=-0\.1\)"),
        (lambda: ChannelPruning(importance="l3"), r"importance='l3'"),
        (lambda: ChannelPruning(at_epoch=-2), r"ChannelPruning\(at_epoch=-2\): expected an epoch of at least 0, or -1"),
        (lambda: ChannelPruning(keep=0.0, of="flops"), r"ChannelPruning\(keep=0\.0\): expected a share in \(0, 1\]"),
        (lambda: ChannelPruning(batches="8"), r"ChannelPruning\(batches='8'\): expected a whole number of at least 0"),
        (lambda: ChannelPruning(batches=-1), r"ChannelPruning\(batches=-1\): expected a whole number of at least 0"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
