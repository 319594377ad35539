"""Pauses against their definition, a note at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quintet.piano.notes import Notes, joined, notes, split_at_pauses

PIECE = st.lists(st.tuples(st.integers(40, 80), st.integers(0, 90), st.integers(1, 30)), max_size=25).map(
    lambda rows: notes(*np.array([(p, 64, s / 2, (s + d) / 2) for p, s, d in rows], dtype=float).reshape(-1, 4).T)
)


@given(PIECE, st.sampled_from([0.0, 1.0, 4.0]))
def test_parts_are_what_silence_separates(piece: Notes, threshold: float) -> None:
    parts = split_at_pauses(piece, threshold)
    again = joined(*parts)
    for name in ("pitch", "velocity", "start", "end"):
        assert np.array_equal(getattr(again, name), getattr(piece, name))  # every note once, the tail too
    for before, after in pairwise(parts):
        assert after.start.min() - before.end.max() > threshold
    for part in parts:
        for i in range(1, len(part)):
            assert part.start[i] - max(part.end[:i]) <= threshold


def test_a_long_note_bridges_a_gap_between_short_ones() -> None:
    """What the note just before says is not enough: the bass sounds on."""
    table = notes(*np.array([(40, 64, 0, 9), (60, 64, 1, 2), (62, 64, 10, 11), (64, 64, 16, 17)], dtype=float).T)
    parts = split_at_pauses(table, 4)
    assert [part.pitch.tolist() for part in parts] == [[40, 60, 62], [64]]
    assert [part.start[0] for part in parts] == [0, 16]
    assert split_at_pauses(table[:0], 4) == []
