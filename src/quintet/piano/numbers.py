"""Notes as whole numbers below 65,536, as a token store keeps them: exact to a ten-thousandth of a second.

A piece is two numbers that say of what it is (data set and composer, see `quintet.piano.context`), then six for each
note: pitch, velocity, start and end, the last two in units of 0.1 ms as high and low halves.
"""

from __future__ import annotations

import numpy as np

from quintet.errors import UserError
from quintet.piano.notes import Notes

HEADER = 2
PER_NOTE = 6
NUMBERS = 1 << 16
UNIT = 1e-4  # seconds
_MOST = (1 << 32) - 1  # units
LONGEST = _MOST * UNIT
"""The latest end in seconds, after 119 hours."""


def to_numbers(notes: Notes, dataset: int, composer: int) -> np.ndarray:
    """``notes`` of a piece as uint16 [2 + 6 · notes]; each is at least one unit long.

    Raises UserError for times that do not fit: before 0, or after 119 hours.
    """
    start = np.rint(notes.start / UNIT).astype(np.int64)
    end = np.maximum(np.rint(notes.end / UNIT).astype(np.int64), start + 1)
    if len(notes) and (start.min() < 0 or end.max() > _MOST):
        raise UserError("has notes before its beginning or after 119 hours")
    table = np.column_stack([notes.pitch, notes.velocity, start >> 16, start & 0xFFFF, end >> 16, end & 0xFFFF])
    return np.concatenate([[dataset, composer], table.ravel()]).astype(np.uint16)


def from_numbers(numbers: np.ndarray) -> Notes:
    """The notes of ``numbers`` [6 · notes], without the two that begin a piece."""
    table = np.asarray(numbers, dtype=np.int64).reshape(-1, PER_NOTE)
    start = ((table[:, 2] << 16) + table[:, 3]) * UNIT
    end = ((table[:, 4] << 16) + table[:, 5]) * UNIT
    return Notes(table[:, 0], table[:, 1], start, end)
