"""The `Tokenizer` protocol, and what all kinds share: bytes of ids, cuts of long texts, the folder of a saved one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quintet.config.keypath import is_mapping
from quintet.errors import UserError
from quintet.files import from_json, write_text
from quintet.system import cores

END_OF_TEXT = "<|endoftext|>"
NO_END = -1  # the end_id of a tokenizer without one; equal to no id

Ids = Sequence[int] | np.ndarray
DESCRIPTION = "quintet.json"
FORMAT = 1
PART = 65_536  # characters
_CUT = re.compile("(?<=[A-Za-z]) ")


@dataclass(frozen=True)
class TokenBytes:
    """The bytes that each id writes inside a text; none for special ids.

    ``leading_space``: the tokenizer puts a space before the first word, and decoding a text from its start removes it
    (sentencepiece's dummy prefix).
    """

    table: tuple[bytes, ...]
    leading_space: bool = False

    def of(self, token: int) -> bytes:
        """Return the bytes of one id. A model's embedding may have more rows than there are ids; they write nothing."""
        assert token >= 0, token
        return self.table[token] if token < len(self.table) else b""

    def decode(self, ids: Ids) -> str:
        """Return the text of ``ids``, integers [tokens].

        Bytes that are not UTF-8 become U+FFFD, as the Unicode Standard (section 3.9) advises.
        """
        data = b"".join(map(self.of, np.asarray(ids).tolist()))
        if self.leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def lengths(self) -> np.ndarray:
        """Return the number of bytes of each id, int64 [vocab_size]."""
        return np.fromiter(map(len, self.table), dtype=np.int64, count=len(self.table))


@dataclass(frozen=True)
class Spans:
    """The ``ids`` of a text, uint32 [tokens], and the characters of each: ``starts[i]`` to ``stops[i]`` - 1 for id i,
    int64 [tokens].

    Ids that are parts of one character have all of it. An id that the tokenizer adds may have no characters
    (``starts[i] == stops[i]``); it comes before the character ``starts[i]``.
    """

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of_bytes(cls, text: str, ids: np.ndarray, lengths: np.ndarray) -> Spans:
        """Return the spans of ``ids`` that write the bytes of ``text`` one after the other, ``lengths`` bytes each,
        int64 [tokens]."""
        stops = np.cumsum(lengths)
        starts = stops - lengths
        if not text.isascii():
            data = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
            owners = np.cumsum((data & 0xC0) != 0x80) - 1  # the character of each byte
            starts, stops = owners[starts], owners[stops - 1] + 1
        return cls(ids, starts, stops)

    @classmethod
    def joined(cls, parts: Sequence[Spans], sizes: Sequence[int]) -> Spans:
        """Return the spans of a text from the spans of its ``parts``, which have ``sizes`` characters."""
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
        """The id that ends a document, ``NO_END`` if documents do not end."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend only on what ``encode`` and ``decode`` do."""
        ...

    @property
    def lossless(self) -> bool:
        """True if ``decode(encode(text)) == text`` for every text that ``encode`` accepts, False if it may not be."""
        ...

    @property
    def can_cut(self) -> bool:
        """True if a cut of a text between an ASCII letter and a space never changes its ids."""
        ...

    @property
    def pieces(self) -> TokenBytes:
        """The bytes that each id stands for."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` only: special ids are neither added nor read out of the text.

        Raises UserError when the text has no UTF-8, or when the vocabulary cannot write it.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode many texts on all cores: one uint32 [tokens] per text."""
        ...

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        """Encode many texts, with the characters of each id."""
        ...

    def decode(self, ids: Ids) -> str:
        """Return the text of ``ids``, integers [tokens]. Special ids write nothing; invalid UTF-8 becomes U+FFFD."""
        ...

    def bytes_per_token(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each id, int64 [vocab_size]; 0 for special ids."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that ``load_tokenizer`` needs into ``folder``: it needs no original file, network or cache."""
        ...


class Decoding(ABC):
    """A base for tokenizers that decodes by the bytes of each id."""

    @cached_property
    @abstractmethod
    def _pieces(self) -> TokenBytes: ...

    @property
    def pieces(self) -> TokenBytes:
        return self._pieces

    def decode(self, ids: Ids) -> str:
        return self.pieces.decode(ids)

    def bytes_per_token(self) -> np.ndarray:
        return self.pieces.lengths()


def check_text(text: str) -> None:
    """Raise UserError when ``text`` holds a surrogate: half a character, which UTF-8 cannot write."""
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
    """Return 16 hexadecimal digits of BLAKE2b; the length before each part keeps parts from running together."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """Return the version of each of ``libraries`` that is installed, by its name on PyPI."""
    versions = {name: _version(metadata.version, name) for name in libraries}
    return {name: version for name, version in versions.items() if version is not None}


@cache
def _version(look_up: Callable[[str], str], name: str) -> str | None:
    """Return the version of a library by ``look_up``, which parses a file each time; None if it is not installed."""
    try:
        return look_up(name)
    except metadata.PackageNotFoundError:
        return None


def libraries_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the libraries that make the ids of ``tokenizer``: its attribute ``libraries``, if its class has one."""
    return tuple(getattr(tokenizer, "libraries", ()))


def threads() -> int:
    """Return the threads for a batch: RAYON_NUM_THREADS, which `tokenizers` obeys too, or the cores of this process."""
    limit = os.environ.get("RAYON_NUM_THREADS", "")
    if limit.isdigit() and int(limit) > 0:
        return int(limit)
    return cores()


def write_description(folder: Path, kind: str, fingerprint: str, facts: dict[str, Any]) -> None:
    """Write `quintet.json`. Call it last: a folder without it holds no tokenizer."""
    write_text(
        folder / DESCRIPTION,
        json.dumps({"format": FORMAT, "kind": kind, "fingerprint": fingerprint, **facts}, indent=1, ensure_ascii=False),
    )


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of `quintet.json`. Raises UserError when it is missing or damaged."""
    file = folder / DESCRIPTION
    if not file.is_file():
        raise UserError(
            f"{file}: does not exist, so {folder} holds no tokenizer; name a folder that Quintet wrote one into"
        )
    description = read_json(file)
    if description.get("format") != FORMAT or not isinstance(description.get("fingerprint"), str):
        raise damaged(file, f"it has no fingerprint or not format {FORMAT}")
    return description


def damaged(file: Path, why: str) -> UserError:
    """Return the error for a file that is not what was written."""
    return UserError(
        f"{file}: is damaged ({why}); restore it from a copy, or delete its folder and let it be made again"
    )


def read_bytes(file: Path) -> bytes:
    """Return the content of ``file``. Raises UserError when it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); restore it, or delete its folder and let it be made again"
        ) from None


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``. Raises UserError when it cannot be read or holds no JSON object."""
    try:
        content = from_json(read_bytes(file))
    except ValueError as error:
        raise damaged(file, f"it is no JSON: {error}") from None
    if not is_mapping(content):
        raise damaged(file, "it is no JSON object")
    return content


def cut_text(text: str, size: int) -> Iterator[str]:
    """Yield ``text`` in parts of about ``size`` characters, the last at most twice as long, as far as safe cuts exist.

    A text is one unit of work for the libraries: it runs on one core, and `tokenizers` keeps the origin of every byte,
    which made a single text of 4 MB four times slower on two cores than the same text in parts of 64 kB.

    A cut is between an ASCII letter and a space (U+0020), where the ids provably stay the same. In the patterns of
    GPT-2, cl100k_base and o200k_base no alternative has a letter before a space, so a match always ends there. Their
    only lookaheads come after white space, so what ends with a letter is matched the same without the rest. There is no
    lookbehind, so the rest is matched the same without what came before. Merges happen inside a match only.
    """
    start = 0
    while len(text) - start > 2 * size and (match := _CUT.search(text, start + size)):
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def encode_in_parts(texts: Sequence[str], encode: Callable[[Sequence[str]], list[np.ndarray]]) -> list[np.ndarray]:
    """Return ``encode(texts)``, one uint32 [tokens] per text, but cut long texts before and join their ids after."""
    if all(len(text) <= 2 * PART for text in texts):
        return encode(texts)
    parts = [list(cut_text(text, PART)) for text in texts]
    encoded = iter(encode([part for text in parts for part in text]))
    return [np.concatenate([next(encoded) for _ in text]) for text in parts]
