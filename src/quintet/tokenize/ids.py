"""Ids that stand for nothing but themselves, for data without a text behind it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from quintet.errors import UserError
from quintet.tokenize.base import NO_END, Ids, Pieces, digest
from quintet.tokenize.folder import write_description


class IdTokenizer:
    """``vocab_size`` ids, written as numbers with spaces between them. ``end_id`` ends a document and writes nothing;
    with ``NO_END`` documents do not end. No id stands for bytes of a text, so that there are no bits per byte."""

    lossless = False  # ids come back, but not how many spaces stood between them
    can_cut = False

    def __init__(self, vocab_size: int, end_id: int = NO_END) -> None:
        self.vocab_size, self.end_id = vocab_size, end_id
        self.fingerprint = digest("ids", str(vocab_size), str(end_id))

    @property
    def pieces(self) -> Pieces:
        return self._pieces

    @cached_property
    def _pieces(self) -> Pieces:
        table = (b"" if token == self.end_id else f" {token}".encode() for token in range(self.vocab_size))
        return Pieces(tuple(table), leading_space=True)

    def encode(self, text: str) -> list[int]:
        """The ids that ``text`` writes as numbers, such as "12 7 9". Raises UserError for any other text."""
        return [self._id(word) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), dtype=np.uint32) for text in texts]

    def decode(self, ids: Ids) -> str:
        return self.pieces.decode(ids)

    def bytes_per_token(self) -> np.ndarray:
        return np.zeros(self.vocab_size, dtype=np.int64)

    def save(self, folder: Path) -> None:
        end_id = None if self.end_id == NO_END else self.end_id
        write_description(folder, "ids", self.fingerprint, {"vocab_size": self.vocab_size, "end_id": end_id})

    def _id(self, word: str) -> int:
        # Not int(): it would also take "1_0", "+1" and digits of other scripts.
        if not (word.isascii() and word.isdecimal()) or int(word) >= self.vocab_size:
            raise UserError(
                f"text: {word[:20]!r} is no id below {self.vocab_size}; tokenizer.kind: ids knows no text, so write "
                'ids as numbers ("12 7 9"), or set another tokenizer'
            )
        return int(word)
