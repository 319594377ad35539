"""Notes: what a performance is once the pedal is resolved into lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 21, 108
"""The keys of a piano as MIDI pitches."""
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def pitch_name(pitch: int) -> str:
    """The name of a MIDI pitch in scientific pitch notation: 60 is C4."""
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


@dataclass(frozen=True)
class Notes:
    """A table of notes, sorted by start, then pitch, then end.

    ``pitch`` and ``velocity`` are int64 [notes], 0 to 127; ``start`` and ``end`` are float64 [notes] in seconds, each
    end behind its start. Build one with `notes`, which sorts.
    """

    pitch: np.ndarray
    velocity: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.pitch)

    def __getitem__(self, which: slice | np.ndarray) -> Notes:
        """Some of the notes: a slice, a mask [notes] or indices in ascending order."""
        return Notes(self.pitch[which], self.velocity[which], self.start[which], self.end[which])

    @property
    def seconds(self) -> float:
        """When the last note ends; 0 where there is none."""
        return float(self.end.max()) if len(self) else 0.0

    def moved(self, seconds: float) -> Notes:
        """The same notes so much later."""
        return Notes(self.pitch, self.velocity, self.start + seconds, self.end + seconds)

    def faster(self, factor: float) -> Notes:
        """The same notes, ``factor`` times as fast."""
        return Notes(self.pitch, self.velocity, self.start / factor, self.end / factor)

    def transposed(self, semitones: int) -> Notes:
        """The same notes, so much higher."""
        return Notes(self.pitch + semitones, self.velocity, self.start, self.end)


def notes(pitch: np.ndarray, velocity: np.ndarray, start: np.ndarray, end: np.ndarray) -> Notes:
    """A table of these notes in their order."""
    order = np.lexsort((end, pitch, start))
    return Notes(
        np.asarray(pitch, dtype=np.int64)[order],
        np.asarray(velocity, dtype=np.int64)[order],
        np.asarray(start, dtype=np.float64)[order],
        np.asarray(end, dtype=np.float64)[order],
    )


def joined(*tables: Notes) -> Notes:
    """All notes of several tables as one."""
    parts = [[getattr(table, name) for table in tables] for name in ("pitch", "velocity", "start", "end")]
    return notes(*(np.concatenate(part) if part else np.empty(0) for part in parts))
