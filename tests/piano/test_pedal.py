"""The pedal against a simulation of a keyboard, instant by instant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.piano.notes import DOWN, Notes, held, notes, pedal, separated

NOTE = st.tuples(st.integers(58, 61), st.integers(1, 127), st.integers(0, 30), st.integers(1, 12))
PLAYED = st.lists(NOTE, max_size=14).map(
    lambda rows: notes(*np.array([(p, v, s, s + d) for p, v, s, d in rows], dtype=float).reshape(-1, 4).T)
)
VALUES = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0, 30, 63, 64, 90, 127])), max_size=10).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)


def resolve(played: Notes, values: list[tuple[int, int]]) -> Notes:
    time, value = np.array(values, dtype=float).reshape(-1, 2).T
    return separated(held(played, pedal(time, value, played.seconds)))


def simulated(played: Notes, values: list[tuple[int, int]]) -> set[tuple[int, int, float, float]]:
    """At each whole second: let go what ends by key or pedal, then strike. One string a pitch."""
    found, strings = set(), {}
    key_up = {}  # (pitch, start) to the release of the key
    if values and values[-1][1] >= DOWN:  # nobody lets go: then the last of keys and presses does
        ups = [i for i, (_, value) in enumerate(values) if value < DOWN]
        pressed = values[ups[-1] + 1 if ups else 0][0]
        values = [(time, value) for time, value in values if time <= max(played.seconds, pressed)]
        values.append((int(max(played.seconds, pressed)), 0))
    last = int(max(played.seconds, max((time for time, _ in values), default=0)))
    down = False
    for now in range(last + 1):
        lifted = False
        for time, value in values:
            if time == now:
                lifted |= down and value < DOWN
                down = value >= DOWN
        struck = {}
        for pitch, velocity, start, end in zip(played.pitch, played.velocity, played.start, played.end, strict=True):
            if start == now:
                old = struck.get(pitch, (0, 0))
                struck[pitch] = (max(old[0], velocity), max(old[1], end))
        for pitch, (velocity, start) in list(strings.items()):
            free = key_up[pitch, start] <= now and (lifted or not down)
            if pitch in struck or free:
                found.add((int(pitch), int(velocity), float(start), float(now)))
                del strings[pitch]
        for pitch, (velocity, end) in struck.items():
            strings[pitch], key_up[pitch, now] = (velocity, now), end
    return found


def rows(table: Notes) -> set[tuple[int, int, float, float]]:
    return set(zip(*(getattr(table, name).tolist() for name in ("pitch", "velocity", "start", "end")), strict=True))


@given(PLAYED, VALUES)
def test_as_a_keyboard_would_sound(played: Notes, values: list[tuple[int, int]]) -> None:
    assert rows(resolve(played, values)) == simulated(played, values)


@given(PLAYED, VALUES)
def test_no_note_is_shorter_than_played_unless_struck_again_and_no_pitch_overlaps(
    played: Notes, values: list[tuple[int, int]]
) -> None:
    sounding = resolve(played, values)
    assert (sounding.end > sounding.start).all()
    for pitch in set(played.pitch.tolist()):
        ours = sounding[sounding.pitch == pitch]
        assert (ours.end[:-1] <= ours.start[1:]).all()
        assert set(ours.start) == set(played.start[played.pitch == pitch])
        for start, end in zip(ours.start, ours.end, strict=True):
            same = (played.pitch == pitch) & (played.start == start)
            assert end >= played.end[same].max() or end in ours.start


@given(PLAYED)
def test_without_a_pedal_only_overlaps_change(played: Notes) -> None:
    assert rows(resolve(played, [])) == rows(separated(played))
    assert rows(separated(separated(played))) == rows(separated(played))


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ([(0, 127), (7, 0)], 7.0),  # on and off, as most keyboards send
        ([(0, 64), (3, 100), (5, 70), (6, 65), (8, 63), (9, 0)], 8.0),  # half-way positions: up below 64
        ([(0, 63), (7, 0)], 2.0),
        ([(3, 127), (7, 0)], 2.0),  # pressed behind the release
        ([(0, 127)], 9.0),  # never up: until the last key is released
        ([(0, 127), (4, 0), (4, 127), (8, 0)], 4.0),  # a change of pedal within an instant
    ],
)
def test_when_a_held_note_ends(values: list[tuple[int, int]], end: float) -> None:
    played = notes(*np.array([(60, 80, 1, 2), (72, 80, 6, 9)], dtype=float).T)
    assert resolve(played, values).end[0] == end


def test_a_short_note_before_the_first_press_ends_with_its_key() -> None:
    played = notes(*np.array([(60, 80, 0.25, 0.5)], dtype=float).T)
    for values in ([], [(3, 127), (7, 0)], [(3, 127)]):
        assert resolve(played, values).end.tolist() == [0.5]
