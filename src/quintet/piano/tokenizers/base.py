"""The protocol and a base class of tokenizers of notes, and functions that they share."""

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
    """A tokenizer of notes. As a `Tokenizer` of text it reads and writes the names of its tokens, separated by
    spaces."""

    @property
    def pad_id(self) -> int:
        """The id that pads samples; it is no music."""
        ...

    @property
    def special_names(self) -> tuple[str, ...]:
        """The special names, in the order of their ids."""
        ...

    def names(self) -> list[str]:
        """Return the name of each id: distinct words without spaces."""
        ...

    def special(self, name: str) -> int:
        """Return the id of a special name. Raises UserError if there is none."""
        ...

    def with_special(self, names: Sequence[str]) -> NoteTokenizer:
        """Return the tokenizer with the new ones of ``names`` as its first free ids, in their order.

        Raises UserError if there are more names than free ids.
        """
        ...

    def encode_notes(self, notes: Notes) -> np.ndarray:
        """Return the ids of a piece, uint32 [tokens]; time runs from 0, so a piece that starts later starts with
        silence.

        Raises UserError for times before 0, and for pitches outside a piano if the config refuses these.
        """
        ...

    def decode_notes(self, ids: Ids, *, close: bool = True) -> Notes:
        """Return the notes of ``ids``, integers [tokens] of any value: no output of a model is an error.

        Ids that make no sense, special ids and ids beyond the vocabulary are ignored. Notes without an end last until
        the last id if ``close``, and are dropped otherwise. A note of no length is dropped.
        """
        ...


def note_tokenizer(tokenizer: Tokenizer) -> NoteTokenizer:
    """Return ``tokenizer`` as a tokenizer of notes. Raises UserError for a tokenizer of text."""
    if not hasattr(tokenizer, "encode_notes"):
        raise UserError("tokenizer.kind: must be one of notes for piano music: exponential_time, note_bpe or miditok")
    return tokenizer  # pyright: ignore[reportReturnType]


class NamedTokens(WordTokenizer):
    """Base of tokenizers of notes: texts of token names, and special names.

    ``names`` has a name for each id; ``special`` are the special names among them, in the order of their ids.
    """

    def __init__(self, names: Sequence[str], special: Sequence[str], pad_id: int, end_id: int) -> None:
        super().__init__(len(names), end_id)
        self._names, self.special_names, self.pad_id = tuple(names), tuple(special), pad_id
        self._id_of = {name: token for token, name in enumerate(self._names)}
        if len(self._id_of) < self.vocab_size:
            repeated = next(name for token, name in enumerate(self._names) if self._id_of[name] != token)
            raise UserError(f"tokenizer.names: {repeated} is the name of another token already; choose another")

    def names(self) -> list[str]:
        return list(self._names)

    def special(self, name: str) -> int:
        if name not in self.special_names:
            raise UserError(f"tokenizer: has no special token {name}; it has {' '.join(self.special_names) or 'none'}")
        return self._id_of[name]

    def _with(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the special names, followed by the new ones of ``names``."""
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
    """Return the config of class ``kind`` and the special names from the ``description`` of a saved tokenizer. Raises
    UserError if they are missing or wrong."""
    try:
        return kind(**description["config"]), tuple(map(str, description["special"]))
    except (KeyError, TypeError, ValidationError):
        raise damaged(folder / DESCRIPTION, "it does not say how notes are written") from None


def on_piano(table: Notes, outside: str) -> Notes:
    """Return the notes on a piano. Raises UserError for times before 0, and for others if ``outside`` is "refuse"."""
    if len(table) and table.start.min() < 0:
        raise UserError(f"notes: one starts at {table.start.min():g} seconds; move the piece, so that none is before 0")
    inside = (table.pitch >= LOWEST) & (table.pitch <= HIGHEST)
    if inside.all():
        return table
    if outside == "refuse":
        raise UserError(
            f"notes: {np.count_nonzero(~inside)} of {len(table)} have a pitch that no piano has ({LOWEST} to "
            f"{HIGHEST}), the first {int(table.pitch[~inside][0])}; leave them out with tokenizer.outside: drop"
        )
    return table[inside]


def slots(special: Sequence[str], room: int) -> list[str]:
    """Return names of ``room`` ids: special ones, then placeholders. Raises UserError if they do not fit."""
    if len(special) > room:
        raise UserError(
            f"tokenizer.special_tokens: {len(special)} special names ({special[0]} …) do not fit into {room} free "
            "ids; raise it"
        )
    return [*special, *(f"<PLACEHOLDER_{index}>" for index in range(len(special), room))]


def in_steps(table: Notes, unit: float) -> Notes:
    """Round times to whole ``unit``s, at least one per note, and let each pitch sound once at a time.

    If notes of one pitch overlap, the earlier ends when the later starts, because a key must go up before it is struck
    again. Notes with the same pitch and step become one (see `separated`).
    """
    start = np.rint(table.start / unit)
    end = np.maximum(np.rint(table.end / unit), start + 1)
    return separated(Notes(table.pitch, table.velocity, start, end))


def lasting(pitch: np.ndarray, velocity: np.ndarray, start: np.ndarray, end: np.ndarray) -> Notes:
    """Build a table of the notes with a positive length; each argument is [notes] of any dtype."""
    kept = end > start
    return notes(pitch[kept], velocity[kept], start[kept], end[kept])


def no_notes() -> Notes:
    """Return an empty table."""
    return notes(*np.empty((4, 0)))
