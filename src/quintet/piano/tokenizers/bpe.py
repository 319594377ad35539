"""Byte-pair encoding of a note tokenizer's ids (Sennrich et al. 2016; piano-gpt's AwesomeMidiTokenizer)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from quintet.config.tokenizer import NoteBPETokenizerConfig
from quintet.errors import UserError
from quintet.files import write_text
from quintet.piano.notes import Notes
from quintet.piano.tokenizers.base import NamedTokens, NoteTokenizer
from quintet.tokenize.base import Ids, damaged, digest, libraries_of, read_bytes, write_description
from quintet.tokenize.bpe import select_evenly
from quintet.tokenize.registry import Documents, load_tokenizer, tokenizer_class

if TYPE_CHECKING:
    import tokenizers

KIND = "note_bpe"
_FILE, _BASE = "tokenizer.json", "base"
_FIRST = 0x100  # character of id 0; up to id 1791 each character takes two bytes
_LAST = 0xD7FF  # the last character before the surrogates
_BYTES = 2
_PART = 512  # ids per word in training; a merge scans all words that contain its pair
_MIN_FREQUENCY = 2  # as in BPE of text


class NoteBPETokenizer(NamedTokens):
    """The ids of ``base``, and after them merged ids, each for several ids of ``base``.

    Encoded notes decode to exactly the same notes as with ``base``, which also gives the end and special ids. The name
    of a merged id is the names of its parts, joined by "+".
    """

    trained_on = "notes"
    libraries = ("tokenizers",)

    def __init__(self, base: NoteTokenizer, merges: str) -> None:
        import tokenizers

        self.base, self._merges = base, merges
        self.libraries = (*type(self).libraries, *libraries_of(base))
        self._library: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(merges)
        size, below = self._library.get_vocab_size(), base.vocab_size
        written = [self._library.id_to_token(token) or "" for token in range(size)]
        if written[:below] != [chr(_FIRST + token) for token in range(below)]:
            raise UserError("tokenizer: its merges belong to another tokenizer of notes; make it again")
        self._parts = [np.array([ord(letter) - _FIRST for letter in token], dtype=np.int64) for token in written]
        names = base.names()
        merged = ["+".join(names[int(part)] for part in parts) for parts in self._parts[below:]]
        super().__init__([*names, *merged], base.special_names, base.pad_id, base.end_id)
        self.fingerprint = digest(KIND, base.fingerprint, *written[below:], _rules(merges))

    @classmethod
    def build(cls, config: NoteBPETokenizerConfig, documents: Documents) -> NoteBPETokenizer:
        """Train the tokenizer on the documents that are pieces of music; see `train`."""
        base = tokenizer_class(config.base.kind).build(config.base, list)
        return train(config, base, (document for document in documents() if isinstance(document, Notes)))

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> NoteBPETokenizer:
        base = load_tokenizer(folder / _BASE)
        if not isinstance(base, NamedTokens):
            raise damaged(folder / _BASE, "it holds no tokenizer of notes")
        merges = read_bytes(folder / _FILE)
        try:
            return cls(cast(NoteTokenizer, base), merges.decode("utf-8"))
        except Exception as error:  # the library raises nothing narrower
            raise damaged(folder / _FILE, str(error)) from None

    def with_special(self, names: Sequence[str]) -> NoteBPETokenizer:
        return NoteBPETokenizer(self.base.with_special(names), self._merges)

    def save(self, folder: Path) -> None:
        (folder / _BASE).mkdir(parents=True, exist_ok=True)
        self.base.save(folder / _BASE)
        write_text(folder / _FILE, self._merges)
        write_description(folder, KIND, self.fingerprint, {})

    def encode_notes(self, notes: Notes) -> np.ndarray:
        word = as_word(self.base.encode_notes(notes))
        return np.array(self._library.encode(word).ids, dtype=np.uint32)

    def decode_notes(self, ids: Ids, *, close: bool = True) -> Notes:
        return self.base.decode_notes(self.unmerged(ids), close=close)

    def unmerged(self, ids: Ids) -> np.ndarray:
        """Return the ids of the base for ``ids``, integers [tokens]: int64 [tokens of the base].

        Ids beyond the vocabulary are dropped.
        """
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[(ids >= 0) & (ids < self.vocab_size)]
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        inside = np.arange(total) - np.repeat(ends - lengths, lengths)
        return self._flat[np.repeat(self._starts[ids], lengths) + inside]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(parts) for parts in self._parts], dtype=np.int64)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self._lengths) - self._lengths

    @cached_property
    def _flat(self) -> np.ndarray:
        return np.concatenate(self._parts)


def train(config: NoteBPETokenizerConfig, base: NoteTokenizer, pieces: Iterable[Notes]) -> NoteBPETokenizer:
    """Train a tokenizer of ``config.vocab_size`` ids on ``pieces``, or of fewer if there are no more pairs to merge.

    The same pieces give the same tokenizer. Raises UserError without pieces, or if the base has more ids than that.
    """
    import tokenizers
    from tokenizers import models, trainers

    if config.vocab_size < base.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} are fewer than the {base.vocab_size} ids of tokenizer.base; "
            "raise it, or lower tokenizer.base.special_tokens"
        )
    if _FIRST + base.vocab_size > _LAST:
        raise UserError(f"tokenizer.base: {base.vocab_size} ids are too many to merge; at most {_LAST - _FIRST}")
    words = select_evenly(_words(base, pieces), _BYTES * config.train_tokens)
    if not words:
        raise UserError("tokenizer: the sources hold no notes to train on; check data.sources")
    library = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=_MIN_FREQUENCY,
        max_token_length=config.max_token_length + 1,  # the library stays below this
        initial_alphabet=[chr(_FIRST + token) for token in range(base.vocab_size)],
        show_progress=False,
    )
    library.train_from_iterator(words, trainer)
    return NoteBPETokenizer(base, library.to_str())


def as_word(ids: np.ndarray) -> str:
    """Return a character for each of ``ids``, uint32 [tokens]."""
    return (ids + np.uint32(_FIRST)).astype("<u4").tobytes().decode("utf-32-le")


def _words(base: NoteTokenizer, pieces: Iterable[Notes]) -> Iterator[str]:
    for piece in pieces:
        ids = base.encode_notes(piece)
        for start in range(0, len(ids), _PART):
            yield as_word(ids[start : start + _PART])


def _rules(merges: str) -> str:
    return json.dumps(json.loads(merges)["model"]["merges"])
