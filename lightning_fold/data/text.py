"""A text as tokens: its bytes, or the output of a tokenizer."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_fold.data.base import ClassificationDataModule, Splits
from lightning_fold.data.datasets import TokenWindows
from lightning_fold.errors import ArgumentError, MissingFileError
from lightning_fold.extras import require

BYTES = 256

_PIECE = 1_000_000  # characters per tokenizer call; its token lists take a hundred times the memory of the text


class TextDataModule(ClassificationDataModule):
    """A text in windows of consecutive tokens, split by position into training, validation and test parts.

    Batches are ``(tokens, targets)``, both ``(B, context)`` int64; the targets are the next tokens. In training, the
    windows start at a different position in each epoch. In evaluation, they do not overlap, so every token is
    predicted once, from the tokens before it in its window.

    Without a file, the text is the language reference included in Python (``pydoc_data.topics``, about 0.4 MB of
    English; nothing to download). Repeated paragraphs are removed. The text differs slightly between Python versions.

    Args:
        path: A UTF-8 text file; empty uses the text included in Python.
        context: Tokens in a window, at least 1.
        tokenizer: Folder or name of a ``transformers`` tokenizer (needs the extra ``transformers``, which downloads
            it if the name is not a folder); empty uses the 256 byte values as tokens.
        val_share: Share of the tokens for validation, taken after the training part, in (0, 1).
        test_share: Share of the tokens for testing, taken from the end, in (0, 1).
        batch_size: Windows per batch and process, at least 1.
        num_workers: Processes that load data; 0 loads in the training process, which is fastest here.
        seed: Seed of the order and of the window positions.

    Raises:
        ArgumentError: A value is out of range, or a part has too few tokens for a window (raised by ``setup``).
        MissingFileError: There is no such file; raised by ``setup``.
        MissingPackageError: ``tokenizer`` is set and ``transformers`` is not installed; raised by ``setup``.
    """

    def __init__(
        self,
        path: str = "",
        context: int = 128,
        tokenizer: str = "",
        val_share: float = 0.05,
        test_share: float = 0.05,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if context < 1:
            raise ArgumentError(f"TextDataModule(context={context}): expected at least 1 token")
        if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
            raise ArgumentError(
                f"TextDataModule(val_share={val_share}, test_share={test_share}): expected shares above 0 that leave "
                "something for training"
            )
        self.path, self.context, self.tokenizer = path, context, tokenizer
        self.val_share, self.test_share = val_share, test_share
        self.num_classes = BYTES

    def load_splits(self) -> Splits:
        """Read the text, convert it to tokens and split it."""
        tokens = self._tokens(_read(self.path) if self.path else python_reference())
        sizes = [round(share * len(tokens)) for share in (1 - self.val_share - self.test_share, self.val_share)]
        parts = torch.tensor_split(tokens, list(accumulate(sizes)))
        for name, part in zip(Splits._fields, parts, strict=True):
            if len(part) <= self.context * (2 if name == "train" else 1):
                raise ArgumentError(
                    f"TextDataModule(path={self.path!r}, context={self.context}): {len(part)} tokens for {name!r} are "
                    "too few for a window. Use a longer text, a larger share or a smaller context."
                )
        train, val, test = parts
        windows = TokenWindows(train, self.context, shift=True, seed=self.seed)
        return Splits(windows, TokenWindows(val, self.context), TokenWindows(test, self.context))

    def _tokens(self, text: bytes) -> Tensor:
        if not self.tokenizer:
            return torch.frombuffer(bytearray(text), dtype=torch.uint8)
        require("TextDataModule(tokenizer=...)", "transformers", extra="transformers")
        import transformers  # the import takes seconds, and only tokenizers need it

        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(self.tokenizer)
        self.num_classes = len(tokenizer)
        words = text.decode()
        pieces = (words[start : start + _PIECE] for start in range(0, len(words), _PIECE))
        found = [tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in pieces]
        return torch.cat([torch.tensor(ids, dtype=torch.int32) for ids in found])


def python_reference() -> bytes:
    """The language reference included in Python, in UTF-8, without repeated paragraphs."""
    from pydoc_data.topics import topics

    paragraphs = (paragraph.strip("\n") for topic in topics.values() for paragraph in topic.split("\n\n"))
    return "\n\n".join(dict.fromkeys(paragraphs)).encode()


def _read(path: str) -> bytes:
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(
            f"TextDataModule(path={path!r}): there is no such file. Set data.init_args.path to a text file, or omit "
            "it to use the text included in Python."
        )
    return file.read_bytes()
