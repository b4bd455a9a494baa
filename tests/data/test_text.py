from pydoc_data.topics import topics

import pytest
import torch

from lightning_fold.data import TextDataModule
from lightning_fold.data.datasets import TokenWindows
from lightning_fold.data.text import python_reference


def joined(windows):
    """The tokens of consecutive windows, and the last target."""
    tokens, targets = windows.__getitems__(range(len(windows)))
    assert torch.equal(tokens.flatten()[1:], targets.flatten()[:-1])
    return bytes([*tokens.flatten().tolist(), int(targets[-1, -1])])


@pytest.fixture
def corpus(tmp_path):
    """A file of 10,000 bytes in which every 8 bytes are different."""
    path = tmp_path / "corpus.txt"
    path.write_bytes("".join(f"{number:07d}\n" for number in range(1250)).encode())
    return path


def test_three_parts_are_the_file_by_position(corpus):
    module = TextDataModule(str(corpus), context=20, val_share=0.1, test_share=0.2)
    text, splits = corpus.read_bytes(), module.splits
    assert joined(splits.val) == text[7000:7981]  # 49 windows of 20, and the token behind them
    assert joined(splits.test) == text[8000:9981]
    assert bytes(splits.train.tokens.tolist()) == text[:7000]
    assert module.num_classes == 256


def test_batches_are_tokens_and_those_that_come_next(corpus):
    module = TextDataModule(str(corpus), context=20, batch_size=7)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        tokens, targets = next(iter(loader))
        assert tokens.shape == targets.shape == (7, 20) and tokens.dtype == targets.dtype == torch.int64
        assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_training_windows_begin_elsewhere_in_each_epoch():
    windows, again = (TokenWindows(torch.arange(1000), 16, shift=True, seed=3) for _ in range(2))
    starts = []
    for epoch in range(40):
        windows.set_epoch(epoch)
        tokens, targets = windows.__getitems__(range(len(windows)))
        assert torch.equal(tokens.flatten(), tokens[0, 0] + torch.arange(16 * len(windows)))
        assert int(targets.max()) < 1000
        starts.append(int(tokens[0, 0]))
    assert len(set(starts)) > 10 and max(starts) == 15
    again.set_epoch(39)
    assert torch.equal(again[5][0], windows[5][0])


def test_text_that_comes_with_python_repeats_no_paragraph():
    paragraphs = python_reference().decode().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) > 1000
    for topic in topics.values():
        assert {paragraph.strip("\n") for paragraph in topic.split("\n\n")} <= set(paragraphs)


def test_tokenizer_in_a_folder(tmp_path, corpus, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="tokenizers come with the extra transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"{number:07d}": number for number in range(1250)} | {"?": 1250}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(tmp_path / "t")
    monkeypatch.setattr("lightning_fold.data.text._PIECE", 800)  # 100 words
    module = TextDataModule(str(corpus), context=20, tokenizer=str(tmp_path / "t"), val_share=0.1, test_share=0.1)
    assert module.splits.val[2][0].tolist() == list(range(1040, 1060))
    assert module.num_classes == 1251


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"context": 0}, ValueError, r"context=0\): expected at least 1"),
        ({"val_share": 0.5, "test_share": 0.5}, ValueError, r"leave something for training"),
        ({"val_share": 0.0}, ValueError, r"expected shares above 0"),
        ({"context": 500}, ValueError, r"500 tokens for 'val' are too few"),
        ({"path": "nowhere.txt"}, FileNotFoundError, r"path='nowhere.txt'\): there is no such file"),
    ],
)
def test_wrong_arguments_are_refused(corpus, arguments, error, message):
    with pytest.raises(error, match=message):
        TextDataModule(**{"path": str(corpus), **arguments}).setup("fit")
