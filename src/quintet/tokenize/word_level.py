"""Tokenizers whose texts are words with spaces between them, a word for each id: numbers, or names of tokens."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from quintet.tokenize.base import Ids, Spans, TokenBytes


class WordTokenizer(ABC):
    """What follows from the words alone. ``end_id`` ends a document and writes nothing. No id stands for bytes of a
    text, so that there are no bits per byte."""

    lossless = False  # ids come back, but not how many spaces stood between them
    can_cut = False

    def __init__(self, vocab_size: int, end_id: int) -> None:
        self.vocab_size, self.end_id = vocab_size, end_id

    @abstractmethod
    def _words(self) -> Iterable[str]:
        """The word of each id, in the order of the ids."""

    @abstractmethod
    def _id(self, word: str) -> int:
        """The id of a word. Raises UserError for any other."""

    @property
    def pieces(self) -> TokenBytes:
        return self._pieces

    @cached_property
    def _pieces(self) -> TokenBytes:
        table = (b"" if token == self.end_id else f" {word}".encode() for token, word in enumerate(self._words()))
        return TokenBytes(tuple(table), leading_space=True)

    def encode(self, text: str) -> list[int]:
        """The ids of a text of words. Raises UserError for any other text."""
        return [self._id(word) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), dtype=np.uint32) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        words = [np.array([found.span() for found in re.finditer(r"\S+", text)]).reshape(-1, 2) for text in texts]
        encoded = self.encode_batch(texts)
        return [Spans(ids, where[:, 0], where[:, 1]) for ids, where in zip(encoded, words, strict=True)]

    def decode(self, ids: Ids) -> str:
        return self.pieces.decode(ids)

    def bytes_per_token(self) -> np.ndarray:
        return np.zeros(self.vocab_size, dtype=np.int64)
