"""OpenAI's encodings, by their library tiktoken."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import tiktoken

from quintet.config.tokenizer import TiktokenTokenizerConfig
from quintet.errors import UserError
from quintet.files import write_text
from quintet.tokenize.base import (
    DESCRIPTION,
    END_OF_TEXT,
    Decoding,
    Spans,
    TokenBytes,
    check_text,
    damaged,
    digest,
    encode_in_parts,
    read_bytes,
    threads,
    write_description,
)

# The files of each encoding: their names in tiktoken's cache (SHA-1 of the address), and the SHA-256 that it demands.
FILES = {
    "gpt2": {  # merges and vocabulary
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    },
    "p50k_base": {
        "ec7223a39ce59f226a68acc30dc1af2788490e15": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    },
    "cl100k_base": {
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    },
    "o200k_base": {
        "fb374d419588a4632f3f557e76b4b70aebbca790": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    },
}
_RANKS = "ranks.tiktoken"


class _Encoding(TypedDict):
    """The parts of what a constructor of tiktoken returns that are read here."""

    pat_str: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]


# tiktoken's own plugin is a module without types.
_CONSTRUCTORS: Mapping[str, Callable[[], _Encoding]] = importlib.import_module(
    "tiktoken_ext.openai_public"
).ENCODING_CONSTRUCTORS


class TiktokenTokenizer(Decoding):
    """A byte-level BPE given by its pattern, the rank of each merged byte string, and its special tokens."""

    lossless = True
    can_cut = True
    libraries = ("tiktoken",)

    def __init__(self, name: str, pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> None:
        self.name = name
        self._parts = (name, pattern, ranks, special)
        self._library = tiktoken.Encoding(
            f"quintet-{name}", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.vocab_size = self._library.n_vocab
        self.end_id = special[END_OF_TEXT]

    @classmethod
    def build(cls, config: TiktokenTokenizerConfig, documents: Any) -> TiktokenTokenizer:
        return tiktoken_encoding(config.name)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> TiktokenTokenizer:
        file = folder / _RANKS
        try:
            lines = (line.split() for line in read_bytes(file).splitlines())
            ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in lines}
        except ValueError as error:
            raise damaged(file, str(error)) from None
        if len(set(ranks.values())) != len(ranks):
            raise damaged(file, "a rank stands there twice")
        if not {bytes([value]) for value in range(256)} <= ranks.keys():
            raise damaged(file, "it lacks single bytes")
        try:
            return cls(description["name"], description["pattern"], ranks, description["special_tokens"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(folder / DESCRIPTION, f"{type(error).__name__}: {error}") from None

    def __reduce__(self) -> tuple[type[TiktokenTokenizer], tuple[str, str, dict[bytes, int], dict[str, int]]]:
        return (TiktokenTokenizer, self._parts)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        _, pattern, ranks, special = self._parts
        return digest("tiktoken", pattern, _rank_lines(ranks), json.dumps(special, sort_keys=True))

    @property
    def pattern(self) -> str:
        """The regular expression whose matches are the words within which bytes are merged."""
        return self._parts[1]

    @property
    def ranks(self) -> dict[bytes, int]:
        """Rank of each merged byte string, which is its id."""
        return self._parts[2]

    @property
    def special_tokens(self) -> dict[str, int]:
        """Id of each special token."""
        return self._parts[3]

    @cached_property
    def _pieces(self) -> TokenBytes:
        table = [b""] * self.vocab_size  # the ids between the ranks and the special tokens are unused
        for piece, rank in self.ranks.items():
            table[rank] = piece
        return TokenBytes(tuple(table))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_text(text)
        return encode_in_parts(texts, self._encode_all)

    def encode_spans(self, texts: Sequence[str]) -> list[Spans]:
        encoded = zip(texts, self.encode_batch(texts), strict=True)
        return [Spans.of_bytes(text, ids, self._lengths[ids]) for text, ids in encoded]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self.pieces.lengths()

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode a few groups of texts per thread: a future per text would cost as much as encoding a short text."""
        workers = min(threads(), len(texts))
        if workers <= 1:
            return self._encode_group(texts)
        size = -(-len(texts) // (4 * workers))
        groups = [texts[start : start + size] for start in range(0, len(texts), size)]
        with ThreadPoolExecutor(workers) as pool:
            return list(chain.from_iterable(pool.map(self._encode_group, groups)))

    def _encode_group(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            return [self._library.encode_to_numpy(text, disallowed_special=()) for text in texts]
        except ValueError as error:
            longest = max(len(run) for text in texts for run in re.findall(r"\s+", text) or [""])
            raise UserError(
                f"text: tiktoken's {self.name} cannot cut it into words ({error}); its longest run of white space has "
                f"{longest:,} characters, and near a million is too long: shorten it, or take another tokenizer.kind"
            ) from None

    def bytes_per_token(self) -> np.ndarray:
        return self._lengths

    def save(self, folder: Path) -> None:
        write_text(folder / _RANKS, _rank_lines(self.ranks))
        facts = {"name": self.name, "pattern": self.pattern, "special_tokens": self.special_tokens}
        write_description(folder, "tiktoken", self.fingerprint, facts)


def tiktoken_encoding(name: str) -> TiktokenTokenizer:
    """Return the encoding ``name``, from tiktoken's cache or fetched once into it. Raises UserError if it cannot be."""
    _refuse_damaged_cache(name)
    try:
        parts = _CONSTRUCTORS[name]()
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer.name: the files of {name!r} are not in tiktoken's cache and cannot be fetched "
            f"({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a folder that holds "
            f"{' and '.join(FILES[name])}, or start once with a network"
        ) from None
    return TiktokenTokenizer(name, parts["pat_str"], parts["mergeable_ranks"], parts["special_tokens"])


def _refuse_damaged_cache(name: str) -> None:
    """Raise UserError for a cached file whose hash is wrong. tiktoken would delete it, but it may be the user's own."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", ""))
    for file_name, expected in FILES[name].items() if named else ():
        file = Path(named) / file_name
        if file.exists() and hashlib.sha256(read_bytes(file)).hexdigest() != expected:
            raise UserError(
                f"{file}: is not the file that tiktoken expects for {name!r} (its SHA-256 is not {expected}); put the "
                "right one there, or delete it and start once with a network"
            )


def _rank_lines(ranks: dict[bytes, int]) -> str:
    """Return the ranks in tiktoken's file format: base64 of the bytes, a space, the rank."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ordered)
