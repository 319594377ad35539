"""The edits of a piece that make a prompt: masks of the notes that a task hides, and noise on the notes.

A mask is a function from notes to bool [notes], True for the notes of the target. All follow piano_dataset, on whose
tasks piano-gpt trains; notes are in the order of their starts.
"""

import numpy as np

from quintet.piano.notes import HIGHEST, LOWEST, Notes, notes

WINDOW = 0.2
"""Seconds of one window of a line."""
TOGETHER = 0.015
"""Seconds below which a note belongs to the chord of the note before it."""
_CELLS = 1 << 20  # windows × notes looked at together
SHORTEST = 0.01
"""Seconds of the shortest note after noise."""
_STEP = 0.2  # seconds


def line(notes: Notes, repetitions: int, highest: bool) -> np.ndarray:
    """Mark the top or bottom line, then the line of the remaining notes, ``repetitions`` times: bool [notes].

    A line has, for each window of 0.2 s from the first start to the last, the highest (lowest) note that sounds in it;
    of equal notes the first.
    """
    chosen = np.zeros(len(notes), dtype=bool)
    for _ in range(repetitions):
        rest = np.flatnonzero(~chosen)
        if len(rest) == 0:
            break
        chosen[rest[_one_line(notes[rest], highest)]] = True
    return chosen


def _one_line(notes: Notes, highest: bool) -> np.ndarray:
    first, last = notes.start[0], notes.start[-1]
    windows = first + WINDOW * np.arange(int((last - first) / WINDOW + 1e-9) + 1)
    height = notes.pitch if highest else -notes.pitch
    chosen = np.zeros(len(notes), dtype=bool)
    block = max(_CELLS // len(notes), 1)
    for at in range(0, len(windows), block):
        opens = windows[at : at + block, None]
        sounds = (notes.start <= opens + WINDOW) & (notes.end > opens)
        best = np.where(sounds, height, -1000).argmax(axis=1)
        chosen[best[sounds.any(axis=1)]] = True
    return chosen


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mark the ``count`` largest of ``values`` [notes], all of fewer, the first of equal ones: bool [notes]."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:count]] = True
    return chosen


def count_share(percentage: int, notes: int) -> int:
    """The ``percentage`` of a number of notes, rounded up, so that it is at least one note of any."""
    return -(-percentage * notes // 100)


def stride(notes: Notes, length: int) -> np.ndarray:
    """Mark the second, fourth, … block of ``length`` notes: bool [notes]."""
    return np.arange(len(notes)) // length % 2 == 1


def chords(notes: Notes, least: int) -> np.ndarray:
    """Mark the notes of chords of at least ``least`` notes, except the first note of each: bool [notes].

    A note is in the chord of the note before it when it starts less than 15 ms later.
    """
    follows = np.diff(notes.start, prepend=-np.inf) < TOGETHER
    chord = np.cumsum(~follows)
    return follows & (np.bincount(chord)[chord] >= least)


def random_share(marked: np.ndarray, percentage: int, random: np.random.Generator) -> np.ndarray:
    """Mark a random ``percentage`` of the notes in ``marked``, bool [notes]: bool [notes]."""
    candidates = np.flatnonzero(marked)
    chosen = np.zeros(len(marked), dtype=bool)
    chosen[random.choice(candidates, count_share(percentage, len(candidates)), replace=False)] = True
    return chosen


def all_notes(notes: Notes, random: np.random.Generator) -> np.ndarray:
    """Mark all notes: bool [notes]."""
    return np.ones(len(notes), dtype=bool)


def near_line(notes: Notes, random: np.random.Generator) -> np.ndarray:
    """Mark the notes near a random line, at a distance of at most 2, 3, … or 11: bool [notes].

    The line runs from the pitch of one of the first ten notes to that of one of the last ten; a second and a semitone
    are one unit of distance each.
    """
    begin, seconds, low, high = _ends(notes, random)
    reach = 2 + random.integers(10)
    rise = high - low
    across = rise * (notes.start - begin) - seconds * (notes.pitch - low)
    return np.abs(across) <= reach * np.hypot(seconds, rise)


def in_band(notes: Notes, random: np.random.Generator) -> np.ndarray:
    """Mark the notes in a band around a line as in `near_line`, a random 1 to 10 semitones to either side at each end:
    bool [notes]."""
    begin, seconds, low, high = _ends(notes, random)
    first, last = 1 + random.integers(10, size=2)
    along = (notes.start - begin) / seconds
    middle = low + along * (high - low)
    return np.abs(notes.pitch - middle) <= first + along * (last - first)


def _ends(notes: Notes, random: np.random.Generator) -> tuple[float, float, int, int]:
    """Return the start, the length in seconds and the two pitches of a random line; 0.1 s are added at either end."""
    low = int(random.choice(notes.pitch[:10]))
    high = int(random.choice(notes.pitch[-10:]))
    begin = notes.start[0] - 0.1
    return begin, notes.start[-1] + 0.1 - begin, low, high


def between(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """Mark the ``values`` [notes] from their quantile ``low`` to below their quantile ``high``: bool [notes]."""
    inside = np.ones(len(values), dtype=bool)
    if low is not None:
        inside &= values >= np.quantile(values, low)
    if high is not None:
        inside &= values < np.quantile(values, high)
    return inside


def noisy_velocities(piece: Notes, random: np.random.Generator) -> Notes:
    """Add N(0, 30) to the velocities, clipped to 1 to 127."""
    return notes(piece.pitch, _velocities(piece, random), piece.start, piece.end)


def noisy_pitches(piece: Notes, random: np.random.Generator) -> Notes:
    """Add N(0, 5) semitones to the pitches, clipped to the keys of a piano."""
    return notes(_pitches(piece, random), piece.velocity, piece.start, piece.end)


def noisy_starts(piece: Notes, random: np.random.Generator) -> Notes:
    """Add N(0, 0.3 s) to the starts, clipped to 0 and later; lengths stay."""
    starts = _starts(piece, random)
    return notes(piece.pitch, piece.velocity, starts, starts + np.maximum(piece.end - piece.start, SHORTEST))


def noisy_times(piece: Notes, random: np.random.Generator) -> Notes:
    """Add N(0, 0.3 s) to the starts and to the lengths, clipped to 0 and to 10 ms."""
    starts, ends = _times(piece, random)
    return notes(piece.pitch, piece.velocity, starts, ends)


def noisy_notes(piece: Notes, random: np.random.Generator) -> Notes:
    """Add noise to velocities, pitches, starts and lengths."""
    velocities, pitches = _velocities(piece, random), _pitches(piece, random)
    return notes(pitches, velocities, *_times(piece, random))


def plain_pitches(piece: Notes, random: np.random.Generator) -> Notes:
    """Keep only the pitches, in order: one note each 0.2 s, 0.2 s long, velocity 80."""
    starts = _STEP * np.arange(len(piece))
    return notes(piece.pitch, np.full(len(piece), 80), starts, starts + _STEP)


def _velocities(piece: Notes, random: np.random.Generator) -> np.ndarray:
    moved = piece.velocity + np.rint(random.normal(0, 30, len(piece)))
    return moved.clip(1, 127)  # a velocity of 0 would be silence in MIDI


def _pitches(piece: Notes, random: np.random.Generator) -> np.ndarray:
    return (piece.pitch + np.rint(random.normal(0, 5, len(piece)))).clip(LOWEST, HIGHEST)


def _starts(piece: Notes, random: np.random.Generator) -> np.ndarray:
    return (piece.start + random.normal(0, 0.3, len(piece))).clip(0)


def _times(piece: Notes, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    starts = _starts(piece, random)
    lengths = piece.end - piece.start + random.normal(0, 0.3, len(piece))
    return starts, starts + lengths.clip(SHORTEST)
