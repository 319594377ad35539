"""Characters of a corpus as ids (char-rnn; nanoGPT's Shakespeare example)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from quintet.errors import UserError
from quintet.tokenize.base import Ids, Spans, TokenBytes, check_text, digest
from quintet.tokenize.folder import write_description

_CODE_POINTS = 0x110000


class CharTokenizer:
    """An id is a character's rank in ``characters`` (distinct, sorted by code point); the last id ends a document."""

    lossless = True
    can_cut = True

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters) + 1
        self.end_id = len(characters)
        self.fingerprint = digest("char", characters)

    @cached_property
    def _ids(self) -> np.ndarray:
        """Id of each code point, -1 for those outside the vocabulary: int32 [0x110000]."""
        table = np.full(_CODE_POINTS, -1, dtype=np.int32)
        table[_code_points(self.characters)] = np.arange(len(self.characters), dtype=np.int32)
        return table

    @property
    def pieces(self) -> TokenBytes:
        return self._pieces

    @cached_property
    def _pieces(self) -> TokenBytes:
        return TokenBytes((*(character.encode("utf-8") for character in self.characters), b""))

    def encode(self, text: str) -> list[int]:
        return self._encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        return [Spans(ids, place := np.arange(ids.size), place + 1) for ids in self.encode_batch(texts)]

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

    def decode(self, ids: Ids) -> str:
        return self.pieces.decode(ids)

    def bytes_per_token(self) -> np.ndarray:
        return self.pieces.lengths()

    def save(self, folder: Path) -> None:
        write_description(folder, "char", self.fingerprint, {"characters": self.characters})


def characters_of(texts: Iterable[str]) -> CharTokenizer:
    """The tokenizer of all characters in ``texts``. Raises UserError when there are none."""
    found: set[str] = set()
    for text in texts:
        check_text(text)
        found.update(set(text))
    if not found:
        raise UserError("tokenizer: the sources hold no text to take characters from; check data.sources")
    return CharTokenizer("".join(sorted(found)))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
