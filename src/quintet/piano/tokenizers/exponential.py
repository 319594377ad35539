"""A tokenizer of note-on and note-off events, with time steps of powers of two (piano-gpt's
ExponentialTimeTokenizer)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.tokenizer import ExponentialTimeTokenizerConfig
from quintet.piano.notes import HIGHEST, LOWEST, Notes
from quintet.piano.tokenizers.base import NamedTokens, described, in_steps, lasting, no_notes, on_piano, slots
from quintet.tokenize.base import Ids, digest, write_description

KIND = "exponential_time"
_KEYS = HIGHEST - LOWEST + 1
_FIRST_KEY = 2  # after <PAD> and <CLS>
_FIRST_VELOCITY = _FIRST_KEY + 2 * _KEYS
_VELOCITIES = 128
_MIDDLE = 64  # the velocity of notes before the first velocity token


class ExponentialTimeTokenizer(NamedTokens):
    """Ids in piano-gpt's order: <PAD>, <CLS>, NOTE_ON_p and NOTE_OFF_p for p = 21 … 108, VELOCITY_0 …, 1T, 2T, 4T …
    (time steps), special names, and free ids.

    A piece ends with <CLS>, which has the same id in all such tokenizers and which piano-gpt never uses; a new name
    would move the ids of piano-gpt's special tokens. ``special`` are names for the first free ids after
    ``config.names``.

    `decode_notes` returns the result of `in_steps`. If no pitch is struck while it sounds or twice in a step, these are
    all notes, with exact pitches, starts and ends within ``time_unit`` / 2, and velocities within half a bin, rounded
    up. A note of less than half a ``time_unit`` lasts one, so that its end is wrong by up to 1.5 of them.
    """

    def __init__(self, config: ExponentialTimeTokenizerConfig, special: Sequence[str] = ()) -> None:
        self.config = config
        self.steps = _step_sizes(config.time_unit, config.max_time_step)
        self._first_time = _FIRST_VELOCITY + config.velocity_bins
        self._music = self._first_time + len(self.steps)
        keys = [f"NOTE_{what}_{pitch}" for pitch in range(LOWEST, HIGHEST + 1) for what in ("ON", "OFF")]
        velocities = [f"VELOCITY_{index}" for index in range(config.velocity_bins)]
        music = ["<PAD>", "<CLS>", *keys, *velocities, *(f"{size}T" for size in self.steps)]
        special = tuple(dict.fromkeys((*config.names, *special)))
        super().__init__([*music, *slots(special, config.special_tokens)], special, pad_id=0, end_id=1)
        self.fingerprint = digest(KIND, config.model_dump_json(exclude={"names"}), *self._names)

    @classmethod
    def build(cls, config: ExponentialTimeTokenizerConfig, documents: Any) -> ExponentialTimeTokenizer:
        return cls(config)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> ExponentialTimeTokenizer:
        return cls(*described(folder, description, ExponentialTimeTokenizerConfig))

    def with_special(self, names: Sequence[str]) -> ExponentialTimeTokenizer:
        return ExponentialTimeTokenizer(self.config, self._with(names))

    def save(self, folder: Path) -> None:
        facts = {"config": self.config.model_dump(mode="json"), "special": list(self.special_names)}
        write_description(folder, KIND, self.fingerprint, facts)

    def encode_notes(self, notes: Notes) -> np.ndarray:
        table = in_steps(on_piano(notes, self.config.outside), self.config.time_unit)
        pitch, velocity = table.pitch, table.velocity
        # One number per event sorts by time, then ends before starts, then pitch.
        time = np.concatenate([table.end, table.start]).astype(np.int64)
        down = np.repeat([False, True], len(pitch))
        order = np.argsort((time * 2 + down) * _VELOCITIES + np.tile(pitch, 2))
        time, down = time[order], down[order]
        key = np.tile(_FIRST_KEY + 2 * (pitch - LOWEST), 2)[order] + ~down
        loudness = np.tile(_FIRST_VELOCITY + velocity * self.config.velocity_bins // _VELOCITIES, 2)[order]
        gap = np.diff(time, prepend=0)
        ids, ends = self._waits(gap, 1 + down)
        ids[ends - 1] = key
        ids[ends[down] - 2] = loudness[down]
        return ids

    def _waits(self, gap: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids with the time steps of each ``gap``, the largest first, and ``room`` free ids after each gap, and
        the end of each room."""
        top = len(self.steps) - 1
        bits = [(gap >> power) & 1 for power in range(top)]
        count = gap >> top
        ends = np.cumsum(count + sum(bits, start=np.zeros_like(gap)) + room)
        # All ids are the largest step until others overwrite them below.
        ids = np.full(int(ends[-1]) if len(ends) else 0, self._first_time + top, dtype=np.uint32)
        free = ends - room - 1
        for power, bit in enumerate(bits):
            used = bit.astype(bool)
            ids[free[used]] = self._first_time + power
            free -= bit
        return ids, ends

    def decode_notes(self, ids: Ids, *, close: bool = True) -> Notes:
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[(ids >= _FIRST_KEY) & (ids < self._music)]
        if not len(ids):
            return no_notes()
        waits = ids >= self._first_time
        time = np.cumsum(waits * self._sizes[np.where(waits, ids - self._first_time, 0)])
        velocity = self._velocities_at(ids)
        event = np.flatnonzero(ids < _FIRST_VELOCITY)
        key = (ids[event] - _FIRST_KEY) // 2
        order = np.argsort(key, kind="stable")  # groups the events of each key, in the order of time
        event, key = event[order], key[order]
        down = (ids[event] - _FIRST_KEY) % 2 == 0
        # A key that went down sounds until its next event, up or down.
        last = np.append(key[1:] != key[:-1], True) if len(key) else np.empty(0, dtype=bool)
        end = np.append(time[event[1:]], 0) if len(event) else np.empty(0, dtype=np.int64)
        end[last] = time[-1]
        kept = down if close else down & ~last
        start = time[event]
        unit = self.config.time_unit
        return lasting((key + LOWEST)[kept], velocity[event[kept]], start[kept] * unit, end[kept] * unit)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array(self.steps, dtype=np.int64)

    def _velocities_at(self, ids: np.ndarray) -> np.ndarray:
        """Return the velocity at each id, int64 [ids]: that of the last velocity token, or the middle before any."""
        bins = self.config.velocity_bins
        middles = np.maximum((2 * np.arange(bins) + 1) * _VELOCITIES // (2 * bins), 1)  # a velocity of 0 is no note
        is_velocity = (ids >= _FIRST_VELOCITY) & (ids < self._first_time)
        latest = np.maximum.accumulate(np.where(is_velocity, np.arange(len(ids)), -1))
        return np.where(latest < 0, _MIDDLE, middles[np.where(latest < 0, 0, ids[latest] - _FIRST_VELOCITY)])


def _step_sizes(unit: float, longest: float) -> tuple[int, ...]:
    """Return 1, 2, 4 … as long as these units are below ``longest``."""
    sizes = [1]
    while unit * sizes[-1] * 2 < longest:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes)
