"""What every tokenizer is: text to ids and back, and the bytes that each id stands for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from quintet.errors import UserError
from quintet.system import cores

END_OF_TEXT = "<|endoftext|>"
NO_END = -1  # equal to no id: documents of such a tokenizer do not end

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class TokenBytes:
    """The bytes that each id writes inside a text; none for special ids.

    ``leading_space`` says that the tokenizer puts a space before the first word, which is taken away again when a text
    is decoded from its beginning (sentencepiece's dummy prefix).
    """

    table: tuple[bytes, ...]
    leading_space: bool = False

    def of(self, token: int) -> bytes:
        """Bytes of one id. A model's embedding may have more rows than there are ids; the rest write nothing."""
        assert token >= 0, token
        return self.table[token] if token < len(self.table) else b""

    def decode(self, ids: Ids) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD, as the Unicode Standard (section 3.9) advises."""
        written = b"".join(map(self.of, np.asarray(ids).tolist()))
        if self.leading_space:
            written = written.removeprefix(b" ")
        return written.decode("utf-8", errors="replace")

    def lengths(self) -> np.ndarray:
        """Bytes of each id, int64 [vocab_size]."""
        return np.fromiter(map(len, self.table), dtype=np.int64, count=len(self.table))


@dataclass(frozen=True)
class Spans:
    """``ids`` uint32 [tokens] of a text, of which id i stands for its characters ``starts[i]`` to ``stops[i]`` - 1:
    int64 [tokens] each. Ids that are parts of one character have all of it; an id that the tokenizer adds may have none
    (``starts[i] == stops[i]``) and stands before the character ``starts[i]``."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of_bytes(cls, text: str, ids: np.ndarray, lengths: np.ndarray) -> Spans:
        """Those of ``ids`` that write the bytes of ``text`` one after the other, ``lengths`` int64 [tokens] each."""
        stops = np.cumsum(lengths)
        starts = stops - lengths
        if not text.isascii():
            data = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
            owners = np.cumsum((data & 0xC0) != 0x80) - 1  # the character of each byte
            starts, stops = owners[starts], owners[stops - 1] + 1
        return cls(ids, starts, stops)

    @classmethod
    def joined(cls, parts: Sequence[Spans], sizes: Sequence[int]) -> Spans:
        """Those of a text from those of its ``parts``, which have ``sizes`` characters."""
        if len(parts) == 1:
            return parts[0]
        begins = np.cumsum([0, *sizes])[:-1]
        starts = [part.starts + begin for part, begin in zip(parts, begins, strict=True)]
        stops = [part.stops + begin for part, begin in zip(parts, begins, strict=True)]
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate(starts), np.concatenate(stops))


class Tokenizer(Protocol):
    """Text to ids and back. Build one with ``build_tokenizer``, or load a saved one with ``load_tokenizer``."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 … vocab_size - 1."""
        ...

    @property
    def end_id(self) -> int:
        """The id that ends a document, or ``NO_END``."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that follow from what ``encode`` and ``decode`` do, and from nothing else."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether ``decode(encode(text)) == text`` is promised for every text that ``encode`` accepts."""
        ...

    @property
    def can_cut(self) -> bool:
        """Whether the ids are promised to stay the same when a text is cut between an ASCII letter and a space."""
        ...

    @property
    def pieces(self) -> TokenBytes:
        """The bytes that each id stands for."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` alone: no special id is added, and none is read out of the text.

        Raises UserError when the text cannot be written as UTF-8, or not with this vocabulary.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of many texts on all cores; one uint32 array a text."""
        ...

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        """``encode_batch``, with the characters of the text that each id stands for."""
        ...

    def decode(self, ids: Ids) -> str:
        """The text of ``ids``. Special ids write nothing; bytes that are no UTF-8 become U+FFFD."""
        ...

    def bytes_per_token(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int64 [vocab_size]; 0 for special ids."""
        ...

    def save(self, folder: Path) -> None:
        """Write into ``folder`` all that ``load_tokenizer`` needs, without the original files, a network or a cache."""
        ...


def check_text(text: str) -> None:
    """Raises UserError when ``text`` holds a surrogate: half a character, which UTF-8 cannot write."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"text: character {error.start} is U+{ord(text[error.start]):04X}, a surrogate, which is half a character "
            "and has no UTF-8; repair the text, in Python with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits of BLAKE2b; each part is preceded by its length, so that parts cannot run together."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """The installed version of each of ``libraries``, by their names on PyPI; those that are not installed are left
    out."""
    found = {}
    for name in libraries:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def libraries_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The libraries that make the ids of ``tokenizer``: its attribute `libraries`, where its class has one."""
    return tuple(getattr(tokenizer, "libraries", ()))


def threads() -> int:
    """Threads for a batch: the cores that this process may use, or RAYON_NUM_THREADS, which `tokenizers` obeys too."""
    limit = os.environ.get("RAYON_NUM_THREADS", "")
    if limit.isdigit() and int(limit) > 0:
        return int(limit)
    return cores()
