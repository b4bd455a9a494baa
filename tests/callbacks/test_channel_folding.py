"""ChannelFolding alone; what all callbacks that rewrite once share is in rewriting/test_once.py."""

import pytest

from lightning_fold.callbacks import ChannelFolding


def test_one_pattern_is_no_list():
    with pytest.raises(ValueError, match=r"ChannelFolding\(skip='\*attn\*'\): expected a list, skip=\['\*attn\*'\]"):
        ChannelFolding(skip="*attn*")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChannelFolding(keep=0.0, of="channels"), r"ChannelFolding\(keep=0\.0\): expected a share in \(0, 1\]"),
        (lambda: ChannelFolding(repair="some"), r"repair='some'"),
        (lambda: ChannelFolding({"head": 0.5}), r"Folding\(keep=\{'head': 0\.5\}\): expected a share of the whole"),
        (lambda: ChannelFolding(batches=2.5), r"ChannelFolding\(batches=2\.5\): expected a whole number of at least 0"),
        (lambda: ChannelFolding(repair="data"), r"batches=0, repair='data'\): expected at least 1 batch\."),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
