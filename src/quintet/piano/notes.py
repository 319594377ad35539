"""Notes of a performance, with the pedal resolved into lengths; their pauses, tempo maps and stored form.

A string sounds until its damper falls: when both key and pedal are up, or when the key is struck again.

A token store holds notes as integers below 65,536, with times exact to 0.1 ms. A piece is two numbers for its data set
and composer (see `quintet.piano.context`), then six numbers per note: pitch, velocity, start and end, the last two in
units of 0.1 ms as high and low halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from quintet.errors import UserError

LOWEST, HIGHEST = 21, 108
"""The keys of a piano as MIDI pitches."""
DOWN = 64
"""The smallest value of controller 64 with which a pedal is down (MIDI 1.0, table of controllers)."""
HEADER = 2
PER_NOTE = 6
NUMBERS = 1 << 16
UNIT = 1e-4  # seconds
_MOST = (1 << 32) - 1  # units
LONGEST = _MOST * UNIT
"""The latest end in seconds, after 119 hours."""
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def pitch_name(pitch: int) -> str:
    """The name of a MIDI pitch in scientific pitch notation: 60 is C4."""
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


@dataclass(frozen=True)
class Notes:
    """A table of notes, sorted by start, then pitch, then end.

    ``pitch`` and ``velocity`` are int64 [notes], 0 to 127; ``start`` and ``end`` are float64 [notes] in seconds, each
    end after its start. Build one with `notes`, which sorts.
    """

    pitch: np.ndarray
    velocity: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.pitch)

    def __getitem__(self, which: slice | np.ndarray) -> Notes:
        """Return some of the notes, by a slice, a mask, bool [notes], or ascending indices, int64 [chosen]."""
        return Notes(self.pitch[which], self.velocity[which], self.start[which], self.end[which])

    @property
    def seconds(self) -> float:
        """The end of the last note; 0 without notes."""
        return float(self.end.max()) if len(self) else 0.0

    def moved(self, seconds: float) -> Notes:
        """Return the notes moved by ``seconds``."""
        return Notes(self.pitch, self.velocity, self.start + seconds, self.end + seconds)

    def faster(self, factor: float) -> Notes:
        """Return the notes, ``factor`` times as fast."""
        return Notes(self.pitch, self.velocity, self.start / factor, self.end / factor)

    def transposed(self, semitones: int) -> Notes:
        """Return the notes transposed by ``semitones``."""
        return Notes(self.pitch + semitones, self.velocity, self.start, self.end)


def notes(pitch: np.ndarray, velocity: np.ndarray, start: np.ndarray, end: np.ndarray) -> Notes:
    """Build a sorted table of notes; each argument is [notes] of any dtype."""
    order = np.lexsort((end, pitch, start))
    return Notes(
        np.asarray(pitch, dtype=np.int64)[order],
        np.asarray(velocity, dtype=np.int64)[order],
        np.asarray(start, dtype=np.float64)[order],
        np.asarray(end, dtype=np.float64)[order],
    )


def joined(*tables: Notes) -> Notes:
    """Merge the notes of several tables."""
    parts = [[getattr(table, name) for table in tables] for name in ("pitch", "velocity", "start", "end")]
    return notes(*(np.concatenate(part) if part else np.empty(0) for part in parts))


def split_at_pauses(piece: Notes, threshold: float) -> list[Notes]:
    """Return the parts of a piece between silences of more than ``threshold`` seconds, in their order.

    A silence lasts from the latest end of all notes before it to the next start. Each note is in exactly one part.
    Times stay as they are; ``part.moved(-part.start[0])`` starts at 0.
    """
    sounding = np.maximum.accumulate(piece.end)
    cuts = np.flatnonzero(piece.start[1:] - sounding[:-1] > threshold) + 1
    edges = [0, *cuts.tolist(), len(piece)]
    return [piece[begin:end] for begin, end in pairwise(edges) if end > begin]


def seconds_at(position: np.ndarray | float, change: np.ndarray, length: np.ndarray) -> Any:
    """Convert ``position``, [...], to seconds by the tempo map, float64 [...], in a piece that starts at position 0.

    From ``change[i]`` on, a unit of position lasts ``length[i]`` seconds, both [changes]; ``change`` is ascending and
    starts with 0. Of several changes at one position the last one counts.

    >>> seconds_at(3.0, np.array([0, 2]), np.array([0.5, 1.0])).item()
    2.0
    """
    begin = np.concatenate([[0.0], np.cumsum(np.diff(change) * length[:-1])])
    which = np.searchsorted(change, position, side="right") - 1
    return begin[which] + (position - change[which]) * length[which]


@dataclass(frozen=True)
class Pedal:
    """The presses of a pedal: from ``down[i]`` to ``up[i]``, float64 [presses] in seconds, ascending, disjoint."""

    down: np.ndarray
    up: np.ndarray


def pedal(time: np.ndarray, value: np.ndarray, last: float) -> Pedal:
    """Return the presses of the pedal from its controller's values, in the order of ``time``, in seconds.

    ``time`` and ``value`` are [values] of any dtype. A pedal that is never released comes up at ``last``.
    """
    down = np.asarray(value) >= DOWN
    changes = np.flatnonzero(down != np.concatenate([[False], down[:-1]]))
    ends = np.asarray(time, dtype=np.float64)[changes]
    if len(ends) % 2:
        ends = np.append(ends, max(last, ends[-1]))
    return Pedal(ends[0::2], ends[1::2])


def held(played: Notes, pedal: Pedal) -> Notes:
    """Lengthen notes until the pedal comes up, even if they are struck again before.

    A pedal that is pressed at the time of the release still holds the note.
    """
    press = np.searchsorted(pedal.down, played.end, side="right") - 1
    release = np.append(pedal.up, 0.0)[press]  # before the first press: index -1, released at 0
    return notes(played.pitch, played.velocity, played.start, np.maximum(played.end, release))


def separated(table: Notes) -> Notes:
    """Shorten notes so that each pitch sounds once at a time: a note ends when its pitch is struck again.

    Notes with the same pitch and start become one, with the largest velocity and the last end.
    """
    order = np.lexsort((table.start, table.pitch))
    pitch, start = table.pitch[order], table.start[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (pitch[1:] != pitch[:-1]) | (start[1:] != start[:-1])
    first = np.flatnonzero(new)
    if not len(first):
        return table
    velocity = np.maximum.reduceat(table.velocity[order], first)
    end = np.maximum.reduceat(table.end[order], first)
    pitch, start = pitch[first], start[first]
    repeated = np.flatnonzero(pitch[1:] == pitch[:-1])
    end[repeated] = np.minimum(end[repeated], start[repeated + 1])
    return notes(pitch, velocity, start, end)


def to_numbers(notes: Notes, dataset: int, composer: int) -> np.ndarray:
    """Return ``notes`` of a piece as uint16 [2 + 6 · notes]; each note is at least one unit long.

    Raises UserError for times before 0 or after 119 hours.
    """
    start = np.rint(notes.start / UNIT).astype(np.int64)
    end = np.maximum(np.rint(notes.end / UNIT).astype(np.int64), start + 1)
    if len(notes) and (start.min() < 0 or end.max() > _MOST):
        raise UserError("has notes before its beginning or after 119 hours")
    table = np.column_stack([notes.pitch, notes.velocity, start >> 16, start & 0xFFFF, end >> 16, end & 0xFFFF])
    return np.concatenate([[dataset, composer], table.ravel()]).astype(np.uint16)


def from_numbers(numbers: np.ndarray) -> Notes:
    """Return the notes of ``numbers``, uint16 [6 · notes], without the two numbers at the start of a piece."""
    table = np.asarray(numbers, dtype=np.int64).reshape(-1, PER_NOTE)
    start = ((table[:, 2] << 16) + table[:, 3]) * UNIT
    end = ((table[:, 4] << 16) + table[:, 5]) * UNIT
    return Notes(table[:, 0], table[:, 1], start, end)
