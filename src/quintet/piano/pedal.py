"""The sustain pedal, resolved into the lengths of notes.

A string sounds until its damper falls: when the key is up and the pedal is up, or when the key is struck again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quintet.piano.notes import Notes, notes

DOWN = 64
"""From this value of controller 64 on, a pedal is down (MIDI 1.0, table of controllers)."""


@dataclass(frozen=True)
class Pedal:
    """When a pedal was down: from ``down[i]`` to ``up[i]``, float64 [presses] in seconds, ascending, disjoint."""

    down: np.ndarray
    up: np.ndarray


def pedal(time: np.ndarray, value: np.ndarray, last: float) -> Pedal:
    """The presses that values of the controller make, in the order of ``time`` [values] in seconds.

    A pedal that is never released is released at ``last``. Values that repeat what is, change nothing.
    """
    down = np.asarray(value) >= DOWN
    changes = np.flatnonzero(down != np.concatenate([[False], down[:-1]]))
    ends = np.asarray(time, dtype=np.float64)[changes]
    if len(ends) % 2:
        ends = np.append(ends, max(last, ends[-1]))
    return Pedal(ends[0::2], ends[1::2])


def sustained(played: Notes, pedal: Pedal) -> Notes:
    """The notes as they sound: a key released while the pedal is down sounds until the pedal comes up, or until it is
    struck again. No pitch overlaps itself, see `separated`.
    """
    return separated(held(played, pedal))


def held(played: Notes, pedal: Pedal) -> Notes:
    """The notes until the pedal comes up, also where they are struck again before.

    A pedal pressed in the instant of the release still holds the note.
    """
    press = np.searchsorted(pedal.down, played.end, side="right") - 1
    release = np.append(pedal.up, 0.0)[press]  # before the first press: index -1, released at 0
    return notes(played.pitch, played.velocity, played.start, np.maximum(played.end, release))


def separated(table: Notes) -> Notes:
    """The notes with each pitch sounding once at a time: a note ends where its pitch is struck again.

    Of several notes of a pitch with the same start, one is kept, with the largest velocity and the last end.
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
    again = np.flatnonzero(pitch[1:] == pitch[:-1])
    end[again] = np.minimum(end[again], start[again + 1])
    return notes(pitch, velocity, start, end)
