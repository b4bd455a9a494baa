"""LowRankFactorization alone; what all callbacks that rewrite once share is in rewriting/test_once.py."""

import pytest
import torch

import lightning_fold as lf
from lightning_fold.callbacks import LowRankFactorization, SqueezeRelease
from lightning_fold.storage.checkpoints import record_of
from tests.callbacks.conftest import assert_same_network


def cycles_then_low_rank():
    """One epoch dense, one masked; before epoch 2 the last cycle ends and what it left is factorized."""
    squeeze = SqueezeRelease(dense_epochs=1, cycles=1, shrink_epochs=0, masked_epochs=1, sparsity=[0.5])
    return squeeze, LowRankFactorization(keep=0.6, at_epoch=2)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_low_rank_after_the_cycles_resumes_as_the_unbroken_run(
    make_classifier, make_trainer, run_and_save, data, stopped_after
):
    unbroken, resumed = make_classifier(), make_classifier()
    folder = run_and_save(unbroken, 4, *cycles_then_low_rank())
    trainer = make_trainer(4, *cycles_then_low_rank())
    trainer.fit(resumed, data, ckpt_path=folder / f"{stopped_after}.ckpt", weights_only=True)
    assert_same_network(unbroken.network, resumed.network)
    assert record_of(unbroken).methods == record_of(resumed).methods
    (squeezed, factorized) = record_of(resumed).methods
    assert [squeezed["method"], factorized["method"]] == ["squeeze-release", "factorize"]
    assert squeezed["epoch"] == factorized["epoch"] == 2
    assert lf.count_parameters(resumed.network) == factorized["parameters"] <= 0.6 * squeezed["parameters"]


def test_factorizes_on_training_batches(make_classifier, make_trainer, data):
    """With all batches of the epoch, and then by hand on the same training images."""
    by_callback, by_hand = make_classifier("conv"), make_classifier("conv")
    make_trainer(1, LowRankFactorization(keep=0.6, batches=99)).fit(by_callback, data)
    make_trainer(1).fit(by_hand, data)
    images, _ = data.splits.train.__getitems__(range(96))
    lf.factorize(by_hand.network, images[:2], keep=0.6, batches=[images])
    assert lf.describe(by_callback.network) == lf.describe(by_hand.network)
    other = data.splits.test.__getitems__(range(32))[0]
    torch.testing.assert_close(by_callback.network.eval()(other), by_hand.network.eval()(other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LowRankFactorization(keep=0.0), r"keep=0\.0\): expected a share in \(0, 1\]"),
        (lambda: LowRankFactorization(keep=1.1), r"keep=1\.1\)"),
        (
            lambda: LowRankFactorization(of="layers"),
            r"of='layers'\): expected one of 'parameters', 'flops', 'channels'",
        ),
        (lambda: LowRankFactorization(keep=1.1, of="flops"), r"keep=1\.1\)"),
        (
            lambda: LowRankFactorization(batches=-1),
            r"batches=-1\): expected a whole number of at least 0",
        ),
        (lambda: LowRankFactorization(batches=2.5), r"batches=2\.5\): expected a whole number"),
        (lambda: LowRankFactorization(batches="8"), r"batches='8'\): expected a whole number"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
