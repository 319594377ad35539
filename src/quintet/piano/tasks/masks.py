"""The notes that a task takes away: functions from notes to a mask [notes] of the target.

All follow piano_dataset, whose tasks piano-gpt trains on; notes are in the order of their starts.
"""

from __future__ import annotations

import numpy as np

from quintet.piano.notes import Notes

WINDOW = 0.2
"""Seconds of one window of a line."""
TOGETHER = 0.015
"""Seconds below which a note belongs to the chord of the note before it."""
_CELLS = 1 << 20  # windows × notes looked at together


def line(notes: Notes, repetitions: int, highest: bool) -> np.ndarray:
    """The top or bottom line, and the lines of what is then left: bool [notes].

    A line has, for each window of 0.2 s from the first start to the last, the highest (lowest) note that sounds in it;
    of equal ones the first.
    """
    chosen = np.zeros(len(notes), dtype=bool)
    for _ in range(repetitions):
        left = np.flatnonzero(~chosen)
        if len(left) == 0:
            break
        chosen[left[_one_line(notes[left], highest)]] = True
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
    """The ``count`` largest of ``values`` [notes], all where there are fewer, of equal ones the first: bool [notes]."""
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:count]] = True
    return chosen


def share(percentage: int, notes: int) -> int:
    """Count the notes that a percentage of ``notes`` is, rounded up, so that no percentage of some notes is none."""
    return -(-percentage * notes // 100)


def stride(notes: Notes, length: int) -> np.ndarray:
    """The second, fourth, … block of ``length`` notes: bool [notes]."""
    return np.arange(len(notes)) // length % 2 == 1


def chords(notes: Notes, least: int) -> np.ndarray:
    """Notes of chords of ``least`` notes and more, without the first of each: bool [notes].

    A note is in the chord of the note before it when it starts less than 15 ms later.
    """
    follows = np.diff(notes.start, prepend=-np.inf) < TOGETHER
    chord = np.cumsum(~follows)
    return follows & (np.bincount(chord)[chord] >= least)


def some(of: np.ndarray, percentage: int, random: np.random.Generator) -> np.ndarray:
    """A percentage, drawn without replacement, of the notes that ``of`` [notes] marks: bool [notes]."""
    candidates = np.flatnonzero(of)
    chosen = np.zeros(len(of), dtype=bool)
    chosen[random.choice(candidates, share(percentage, len(candidates)), replace=False)] = True
    return chosen


def everything(notes: Notes, random: np.random.Generator) -> np.ndarray:
    """All notes: bool [notes]."""
    return np.ones(len(notes), dtype=bool)


def near_line(notes: Notes, random: np.random.Generator) -> np.ndarray:
    """Notes at most 2, 3, … or 11 (drawn) from a line: bool [notes].

    The line runs from the pitch of one of the first ten notes to that of one of the last ten; a second and a semitone
    are one unit of distance each.
    """
    begin, seconds, low, high = _ends(notes, random)
    reach = 2 + random.integers(10)
    rise = high - low
    across = rise * (notes.start - begin) - seconds * (notes.pitch - low)
    return np.abs(across) <= reach * np.hypot(seconds, rise)


def in_band(notes: Notes, random: np.random.Generator) -> np.ndarray:
    """Notes inside a band around such a line, 1 to 10 semitones (drawn) to either side at each end: bool [notes]."""
    begin, seconds, low, high = _ends(notes, random)
    first, last = 1 + random.integers(10, size=2)
    along = (notes.start - begin) / seconds
    middle = low + along * (high - low)
    return np.abs(notes.pitch - middle) <= first + along * (last - first)


def _ends(notes: Notes, random: np.random.Generator) -> tuple[float, float, int, int]:
    """Return when a line begins, its seconds, and its two pitches; 0.1 s are added to either end."""
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
