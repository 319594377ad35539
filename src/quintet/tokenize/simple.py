"""Tokenizers that need no library: bytes, characters, and ids that are written as words with spaces between them."""

from __future__ import annotations

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.tokenizer import ByteTokenizerConfig, CharTokenizerConfig, IdTokenizerConfig
from quintet.errors import UserError
from quintet.tokenize.base import (
    DESCRIPTION,
    NO_END,
    Decoding,
    Spans,
    TokenBytes,
    check_text,
    damaged,
    digest,
    write_description,
)

_CODE_POINTS = 0x110000


class ByteTokenizer(Decoding):
    """UTF-8 bytes as ids: an id is a byte, and 256 ends a document."""

    vocab_size = 257
    end_id = 256
    lossless = True
    can_cut = True
    fingerprint = digest("byte")

    @classmethod
    def build(cls, config: ByteTokenizerConfig, documents: Any) -> ByteTokenizer:
        return cls()

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> ByteTokenizer:
        return cls()

    @cached_property
    def _pieces(self) -> TokenBytes:
        return TokenBytes((*(bytes([value]) for value in range(256)), b""))

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return list(text.encode("utf-8"))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_text(text)
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint32) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        encoded = zip(texts, self.encode_batch(texts), strict=True)
        return [Spans.of_bytes(text, ids, np.ones(ids.size, dtype=np.int64)) for text, ids in encoded]

    def save(self, folder: Path) -> None:
        write_description(folder, "byte", self.fingerprint, {})


class CharTokenizer(Decoding):
    """Characters of a corpus as ids (char-rnn; nanoGPT's Shakespeare example).

    An id is a character's rank in ``characters`` (distinct, sorted by code point); the last id ends a document.
    """

    lossless = True
    can_cut = True
    trained_on = "text"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters) + 1
        self.end_id = len(characters)
        self.fingerprint = digest("char", characters)

    @classmethod
    def build(cls, config: CharTokenizerConfig, documents: Callable[[], Iterable[str]]) -> CharTokenizer:
        """Return the tokenizer of all characters in the documents. Raises UserError when there are none."""
        characters: set[str] = set()
        for text in documents():
            check_text(text)
            characters.update(text)
        if not characters:
            raise UserError("tokenizer: the sources hold no text to take characters from; check data.sources")
        return cls("".join(sorted(characters)))

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> CharTokenizer:
        characters = description.get("characters")
        if not isinstance(characters, str) or not characters or sorted(set(characters)) != list(characters):
            raise damaged(folder / DESCRIPTION, "its characters are not distinct and sorted")
        return cls(characters)

    @cached_property
    def _ids(self) -> np.ndarray:
        """The id of each code point, -1 outside the vocabulary: int32 [0x110000]."""
        table = np.full(_CODE_POINTS, -1, dtype=np.int32)
        table[_code_points(self.characters)] = np.arange(len(self.characters), dtype=np.int32)
        return table

    @cached_property
    def _pieces(self) -> TokenBytes:
        return TokenBytes((*(character.encode("utf-8") for character in self.characters), b""))

    def encode(self, text: str) -> list[int]:
        return self._encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        return [Spans(ids, starts := np.arange(ids.size), starts + 1) for ids in self.encode_batch(texts)]

    def _encode(self, text: str) -> np.ndarray:
        check_text(text)
        ids = self._ids[_code_points(text)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            position = int(unknown[0])
            character = text[position]
            name = unicodedata.name(character, "no name")
            raise UserError(
                f"text: character {position} is {character!r} (U+{ord(character):04X}, {name}), which does not occur "
                "in the sources that the character tokenizer was made from; take it out of the text, add a text that "
                "has it to data.sources, or set tokenizer.kind=byte, which writes every text"
            )
        return ids.astype(np.uint32)

    def save(self, folder: Path) -> None:
        write_description(folder, "char", self.fingerprint, {"characters": self.characters})


class WordTokenizer(Decoding):
    """A base for tokenizers whose texts are words with spaces between them, one word for each id.

    ``end_id`` ends a document and writes nothing. No id stands for bytes of a text, so there are no bits per byte.
    """

    lossless = False  # decoding does not restore the number of spaces between words
    can_cut = False

    def __init__(self, vocab_size: int, end_id: int) -> None:
        self.vocab_size, self.end_id = vocab_size, end_id

    @abstractmethod
    def _words(self) -> Iterable[str]:
        """Return the word of each id, in the order of the ids."""

    @abstractmethod
    def _id(self, word: str) -> int:
        """Return the id of a word. Raises UserError for an unknown word."""

    @cached_property
    def _pieces(self) -> TokenBytes:
        table = (b"" if token == self.end_id else f" {word}".encode() for token, word in enumerate(self._words()))
        return TokenBytes(tuple(table), leading_space=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of words. Raises UserError for an unknown word."""
        return [self._id(word) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), dtype=np.uint32) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        words = [np.array([match.span() for match in re.finditer(r"\S+", text)]).reshape(-1, 2) for text in texts]
        encoded = self.encode_batch(texts)
        return [Spans(ids, bounds[:, 0], bounds[:, 1]) for ids, bounds in zip(encoded, words, strict=True)]

    def bytes_per_token(self) -> np.ndarray:
        return np.zeros(self.vocab_size, dtype=np.int64)


class IdTokenizer(WordTokenizer):
    """Ids that stand for themselves only, for data without a text.

    There are ``vocab_size`` ids, written as numbers with spaces between them ("12 7 9"). ``end_id`` ends a document;
    with ``NO_END`` documents do not end.
    """

    def __init__(self, vocab_size: int, end_id: int = NO_END) -> None:
        super().__init__(vocab_size, end_id)
        self.fingerprint = digest("ids", str(vocab_size), str(end_id))

    @classmethod
    def build(cls, config: IdTokenizerConfig, documents: Any) -> IdTokenizer:
        return cls(config.vocab_size, NO_END if config.end_id is None else config.end_id)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> IdTokenizer:
        size, end_id = description.get("vocab_size"), description.get("end_id")
        if not isinstance(size, int) or not isinstance(end_id, int | None):
            raise damaged(folder / DESCRIPTION, "it does not say how many ids there are")
        return cls(size, NO_END if end_id is None else end_id)

    def save(self, folder: Path) -> None:
        end_id = None if self.end_id == NO_END else self.end_id
        write_description(folder, "ids", self.fingerprint, {"vocab_size": self.vocab_size, "end_id": end_id})

    def _words(self) -> Iterable[str]:
        return map(str, range(self.vocab_size))

    def _id(self, word: str) -> int:
        # int() would also accept "1_0", "+1" and digits of other scripts.
        if not (word.isascii() and word.isdecimal()) or int(word) >= self.vocab_size:
            raise UserError(
                f"text: {word[:20]!r} is no id below {self.vocab_size}; tokenizer.kind: ids knows no text, so write "
                'ids as numbers ("12 7 9"), or set another tokenizer'
            )
        return int(word)


def _code_points(text: str) -> np.ndarray:
    """Return the code point of each character of ``text``: uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
