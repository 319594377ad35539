"""Tokenizers of notes: notes to ids and back, and texts that are names of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import ValidationError

from quintet.config.tokenizer import NoteTokenizerConfig
from quintet.errors import UserError
from quintet.piano.notes import HIGHEST, LOWEST, Notes, notes, separated
from quintet.tokenize.base import DESCRIPTION, Ids, Tokenizer, damaged
from quintet.tokenize.simple import WordTokenizer

Config = TypeVar("Config", bound=NoteTokenizerConfig)


class NoteTokenizer(Tokenizer, Protocol):
    """Notes to ids and back. As a `Tokenizer` it writes and reads the names of its tokens, with spaces between them."""

    @property
    def pad_id(self) -> int:
        """The id that fills what is left of a sample; it is no music."""
        ...

    @property
    def special_names(self) -> tuple[str, ...]:
        """The special names, in the order of their ids."""
        ...

    def names(self) -> list[str]:
        """The name of each id: distinct words without spaces."""
        ...

    def special(self, name: str) -> int:
        """The id of a special name. Raises UserError when there is none of that name."""
        ...

    def with_special(self, names: Sequence[str]) -> NoteTokenizer:
        """The same tokenizer with these names in the first free ids, in their order; those that it has are left out.

        Raises UserError when there are more names than free ids.
        """
        ...

    def encode_notes(self, notes: Notes) -> np.ndarray:
        """Ids of a piece, uint32 [tokens]; time runs from 0, so a piece that begins later begins with silence.

        Raises UserError for times before 0, and for pitches outside a piano where these are to be refused.
        """
        ...

    def decode_notes(self, ids: Ids, *, close: bool = True) -> Notes:
        """The notes of ``ids``, integers [tokens] of any value: nothing that a model may write is an error.

        What makes no sense is passed over, and so are special ids and ids beyond the vocabulary. Notes that are never
        ended end with the last id if ``close``, and are left out otherwise. A note that lasts no time is left out.
        """
        ...


def note_tokenizer(tokenizer: Tokenizer) -> NoteTokenizer:
    """Return ``tokenizer`` as a tokenizer of notes. Raises UserError for a tokenizer of text."""
    if not hasattr(tokenizer, "encode_notes"):
        raise UserError("tokenizer.kind: must be one of notes for piano music: exponential_time, note_bpe or miditok")
    return tokenizer  # pyright: ignore[reportReturnType]


class NamedTokens(WordTokenizer):
    """A base for note tokenizers: texts of the names of tokens, and special names.

    ``names`` has one for each id, and ``special`` are those of them that are special, in the order of their ids.
    """

    def __init__(self, names: Sequence[str], special: Sequence[str], pad_id: int, end_id: int) -> None:
        super().__init__(len(names), end_id)
        self._names, self.special_names, self.pad_id = tuple(names), tuple(special), pad_id
        self._id_of = {name: token for token, name in enumerate(self._names)}
        if len(self._id_of) < self.vocab_size:
            twice = next(name for token, name in enumerate(self._names) if self._id_of[name] != token)
            raise UserError(f"tokenizer.names: {twice} is the name of another token already; choose another")

    def names(self) -> list[str]:
        return list(self._names)

    def special(self, name: str) -> int:
        if name not in self.special_names:
            raise UserError(f"tokenizer: has no special token {name}; it has {' '.join(self.special_names) or 'none'}")
        return self._id_of[name]

    def _with(self, names: Sequence[str]) -> tuple[str, ...]:
        """The special names that there are, and after them those of ``names`` that are new."""
        return tuple(dict.fromkeys((*self.special_names, *names)))

    def _words(self) -> tuple[str, ...]:
        return self._names

    def _id(self, word: str) -> int:
        token = self._id_of.get(word)
        if token is None:
            example = " ".join(self._names[2:4])
            raise UserError(
                f"text: {word[:40]!r} is the name of no token; a tokenizer of notes reads names of tokens, such as "
                f'"{example}", and a MIDI file is given as such'
            )
        return token


def described(folder: Path, description: dict[str, Any], kind: type[Config]) -> tuple[Config, tuple[str, ...]]:
    """The config of class ``kind`` and the special names in the ``description`` of a tokenizer that follows from these
    alone. Raises UserError when they are not there."""
    try:
        return kind(**description["config"]), tuple(map(str, description["special"]))
    except (KeyError, TypeError, ValidationError):
        raise damaged(folder / DESCRIPTION, "it does not say how notes are written") from None


def on_piano(table: Notes, outside: str) -> Notes:
    """The notes that a piano has. Raises UserError for others where ``outside`` is "refuse", and for times before 0."""
    if len(table) and table.start.min() < 0:
        raise UserError(f"notes: one starts at {table.start.min():g} seconds; move the piece, so that none is before 0")
    there = (table.pitch >= LOWEST) & (table.pitch <= HIGHEST)
    if there.all():
        return table
    if outside == "refuse":
        raise UserError(
            f"notes: {np.count_nonzero(~there)} of {len(table)} have a pitch that no piano has ({LOWEST} to "
            f"{HIGHEST}), the first {int(table.pitch[~there][0])}; leave them out with tokenizer.outside: drop"
        )
    return table[there]


def slots(special: Sequence[str], room: int) -> list[str]:
    """Names of ``room`` ids: the special ones, then placeholders. Raises UserError when they do not fit."""
    if len(special) > room:
        raise UserError(
            f"tokenizer.special_tokens: {len(special)} special names ({special[0]} …) do not fit into {room} free "
            "ids; raise it"
        )
    return [*special, *(f"<PLACEHOLDER_{index}>" for index in range(len(special), room))]


def in_steps(table: Notes, unit: float) -> Notes:
    """The notes with times in whole ``unit``s, rounded, none shorter than one, and each pitch sounding once at a time.

    Where notes of one pitch overlap, the earlier ends where the later starts, as a key that is struck again has gone up
    before. Of notes of one pitch that start in the same step one is left (see `separated`).
    """
    start = np.rint(table.start / unit)
    end = np.maximum(np.rint(table.end / unit), start + 1)
    return separated(Notes(table.pitch, table.velocity, start, end))


def lasting(pitch: np.ndarray, velocity: np.ndarray, start: np.ndarray, end: np.ndarray) -> Notes:
    """A table of those notes that last some time; each argument is [notes] of any dtype."""
    left = end > start
    return notes(pitch[left], velocity[left], start[left], end[left])


def no_notes() -> Notes:
    """A piece of silence."""
    return notes(*np.empty((4, 0)))
