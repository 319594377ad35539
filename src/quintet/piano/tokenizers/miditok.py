"""Tokenizers of the MidiTok library (Fradet et al. 2021) for one piano."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.keypath import is_list
from quintet.config.tokenizer import MidiTokTokenizerConfig
from quintet.errors import UserError
from quintet.libraries import check_arguments, require
from quintet.piano.notes import HIGHEST, LOWEST, Notes, separated
from quintet.piano.tokenizers.base import NamedTokens, described, in_steps, lasting, no_notes, on_piano, slots
from quintet.tokenize.base import Ids, digest, write_description

KIND = "miditok"
_BEAT = 0.5  # seconds: 120 beats per minute, the library's default tempo
_ONE_PIANO: dict[str, Any] = {
    "special_tokens": ["PAD", "EOS"],
    "programs": [0],
    "use_pitchdrum_tokens": False,
    "use_time_signatures": False,  # a performance has none
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "REMI": {"beat_res": {(0, 4): 24, (4, 12): 8, (12, 64): 2}},
    "TSD": {"beat_res": {(0, 4): 24, (4, 12): 8, (12, 64): 2}},
    "MIDILike": {"beat_res": {(0, 4): 24, (4, 12): 8, (12, 64): 2}},
    "Structured": {"beat_res": {(0, 16): 24}},
    "PerTok": {
        "beat_res": {(0, 4): 12, (4, 12): 4, (12, 64): 1},
        "ticks_per_quarter": 480,
        "use_microtiming": True,
        "max_microtiming_shift": 0.125,
        "num_microtiming_bins": 30,
    },
}
_MORE = {  # arguments of the families besides those of TokenizerConfig
    "REMI": {"max_bar_embedding", "use_bar_end_tokens", "add_trailing_bars"},
    "MIDILike": {"max_duration"},
    "PerTok": {
        "ticks_per_quarter",
        "use_microtiming",
        "max_microtiming_shift",
        "num_microtiming_bins",
        "use_position_toks",
    },
}
_RANGES = ("beat_res", "beat_res_rest")  # keys that hold ranges of beats


class MidiTokTokenizer(NamedTokens):
    """The library's ids, followed by special ones. EOS_None ends a piece.

    A beat is half a second, so times are rounded to 0.5 / steps seconds, where steps is the largest number in
    ``beat_res`` (24: 20.8 ms), or ``ticks_per_quarter`` for PerTok. Decoded pitches are exact, starts within half of
    that step, velocities within 127 / ``num_velocities``. Except with MIDILike, the length of a note is rounded again
    to the resolution of ``beat_res`` for that number of beats, and cut at its largest one. PerTok rounds starts to its
    bins of micro-timing.
    """

    libraries = ("miditok", "symusic")

    def __init__(self, config: MidiTokTokenizerConfig, special: Sequence[str] = ()) -> None:
        self.config = config
        self._library = _library(config)
        vocabulary: dict[str, int] = self._library.vocab
        music = sorted(vocabulary, key=vocabulary.__getitem__)
        assert [vocabulary[name] for name in music] == list(range(len(music)))
        self._music = len(music)
        self._silent = [vocabulary["PAD_None"], vocabulary["EOS_None"]]
        self._off = np.array([vocabulary.get(name.replace("NoteOn", "NoteOff"), -1) for name in music])
        self._down = np.array([name.startswith("NoteOn") for name in music])
        special = tuple(dict.fromkeys((*config.names, *special)))
        super().__init__([*music, *slots(special, config.special_tokens)], special, *self._silent)
        self.fingerprint = digest(KIND, config.model_dump_json(exclude={"names"}), *self._names)

    @classmethod
    def build(cls, config: MidiTokTokenizerConfig, documents: Any) -> MidiTokTokenizer:
        return cls(config)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> MidiTokTokenizer:
        return cls(*described(folder, description, MidiTokTokenizerConfig))

    @property
    def ticks(self) -> int:
        """Time steps per beat."""
        return self._library.tpq if self.config.family == "PerTok" else self._library.time_division

    def with_special(self, names: Sequence[str]) -> MidiTokTokenizer:
        return MidiTokTokenizer(self.config, self._with(names))

    def save(self, folder: Path) -> None:
        facts = {"config": self.config.model_dump(mode="json"), "special": list(self.special_names)}
        write_description(folder, KIND, self.fingerprint, facts)

    def encode_notes(self, notes: Notes) -> np.ndarray:
        table = in_steps(on_piano(notes, self.config.outside), _BEAT / self.ticks)
        if not len(table):
            return np.empty(0, dtype=np.uint32)
        if self.config.family == "Structured":
            self._check_gaps(table)
        encoded = self._library.encode(to_score(table, self.ticks))
        sequence: Any = encoded[0] if is_list(encoded) else encoded
        return np.array(sequence.ids, dtype=np.uint32)

    def decode_notes(self, ids: Ids, *, close: bool = True) -> Notes:
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[(ids >= 0) & (ids < self._music) & ~np.isin(ids, self._silent)]
        if not len(ids):
            return no_notes()
        if close:  # a note-off for each note-on; superfluous ones have no effect
            ids = np.concatenate([ids, self._off[ids[self._down[ids]]]])
        sequence = ids.tolist()
        score = self._library.decode(sequence if self._library.one_token_stream else [sequence])
        return from_score(score)

    def _check_gaps(self, table: Notes) -> None:
        """Raise UserError for gaps longer than the longest time step, because Structured writes one step before each
        note."""
        beats = max(end for _, end in self._library.config.beat_res)
        longest = beats * self.ticks - 1
        gaps = np.diff(table.start, prepend=0)
        if gaps.max() > longest:
            late = int(gaps.argmax())
            unit = _BEAT / self.ticks
            raise UserError(
                f"notes: {gaps[late] * unit:.1f} seconds pass before the note at {table.start[late] * unit:.1f} s, and "
                f"tokenizer.family: Structured can let {longest * unit:.1f} pass; cut pieces at pauses, raise "
                "tokenizer.arguments.beat_res, or take TSD"
            )


def to_score(table: Notes, ticks: int) -> Any:
    """Return a `symusic.Score` of one piano. Times of ``table`` are in steps, ``ticks`` per beat of half a second."""
    symusic: Any = require("symusic", "miditok", "tokenizer.kind: miditok")  # its types exist only at run time
    score = symusic.Score(ticks)
    track = symusic.Track(name="Piano", program=0, is_drum=False)
    track.notes = symusic.Note.from_numpy(
        table.start.astype(np.int32),
        (table.end - table.start).astype(np.int32),
        table.pitch.astype(np.int8),
        table.velocity.astype(np.int8),
    )
    score.tracks.append(track)
    return score


def from_score(score: Any) -> Notes:
    """Return the notes of a score that are on a piano and have a length, with each pitch sounding once at a time. A
    beat is half a second, whatever the tempos of the score."""
    tables = [track.notes.numpy() for track in score.tracks if not track.is_drum]
    if not tables:
        return no_notes()
    pitch, velocity, time, duration = (
        np.concatenate([part[name] for part in tables]).astype(np.int64)
        for name in ("pitch", "velocity", "time", "duration")
    )
    inside = (pitch >= LOWEST) & (pitch <= HIGHEST)
    start = np.maximum(time, 0)  # micro-timing can be before 0
    unit = _BEAT / score.ticks_per_quarter
    table = lasting(
        pitch[inside], np.clip(velocity[inside], 1, 127), start[inside] * unit, (time + duration)[inside] * unit
    )
    return separated(table)


def _library(config: MidiTokTokenizerConfig) -> Any:
    """Build the `miditok.MusicTokenizer`. Raises UserError for arguments that it refuses."""
    miditok = require("miditok", "miditok", "tokenizer.kind: miditok")
    arguments = _arguments(config, set(inspect.signature(miditok.TokenizerConfig).parameters) - {"kwargs"})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            library = getattr(miditok, config.family)(miditok.TokenizerConfig(**arguments))
    except Exception as error:
        raise UserError(f"tokenizer.arguments: MidiTok's {config.family} refuses them: {error}") from None
    if config.family == "Structured" and len(library.config.beat_res) > 1:
        raise UserError(
            'tokenizer.arguments.beat_res: must be one range for family Structured, such as {"0_16": 24}; where steps '
            "of time differ, what they are rounded by adds up"
        )
    return library


def _arguments(config: MidiTokTokenizerConfig, known: set[str]) -> dict[str, Any]:
    """Return the arguments of TokenizerConfig. Raises UserError for names that neither it nor the family knows."""
    known = known | _MORE.get(config.family, set())
    ours = {"special_tokens": "is set by tokenizer.special_tokens and tokenizer.names"}
    check_arguments("tokenizer.arguments", f"MidiTok's {config.family}", sorted(known), config.arguments, ours)
    given = {name: _ranges(name, value) if name in _RANGES else value for name, value in config.arguments.items()}
    return {**_ONE_PIANO, **_DEFAULTS[config.family], **given}


def _ranges(name: str, value: Any) -> dict[tuple[int, int], int]:
    """Return ``{(0, 4): 8}`` for ``{"0_4": 8}``."""
    try:
        ends = ((str(beats).split("_"), int(steps)) for beats, steps in value.items())
        return {(int(first), int(last)): steps for (first, last), steps in ends}
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f'tokenizer.arguments.{name}: {json.dumps(value)} must say steps for ranges of beats, as {{"0_4": 24}}'
        ) from None
