"""Notes: the pedal against a simulated keyboard, pauses against their definition, numbers and back, context tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.errors import UserError
from quintet.piano.context import COMPOSERS, DATASETS, composer_token, context_tokens, dataset_token
from quintet.piano.notes import (
    DOWN,
    HEADER,
    Notes,
    from_numbers,
    held,
    joined,
    notes,
    pedal,
    separated,
    split_at_pauses,
    to_numbers,
)

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
    """At each whole second: end notes by key or pedal, then strike new ones. One string per pitch."""
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
        same_pitch = sounding[sounding.pitch == pitch]
        assert (same_pitch.end[:-1] <= same_pitch.start[1:]).all()
        assert set(same_pitch.start) == set(played.start[played.pitch == pitch])
        for start, end in zip(same_pitch.start, same_pitch.end, strict=True):
            same = (played.pitch == pitch) & (played.start == start)
            assert end >= played.end[same].max() or end in same_pitch.start


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
    """The end of the note just before is not enough, because the bass still sounds."""
    table = notes(*np.array([(40, 64, 0, 9), (60, 64, 1, 2), (62, 64, 10, 11), (64, 64, 16, 17)], dtype=float).T)
    parts = split_at_pauses(table, 4)
    assert [part.pitch.tolist() for part in parts] == [[40, 60, 62], [64]]
    assert [part.start[0] for part in parts] == [0, 16]
    assert split_at_pauses(table[:0], 4) == []


TABLES = st.lists(
    st.tuples(st.integers(0, 127), st.integers(0, 127), st.floats(0, 40_000), st.floats(1e-4, 300)),
    max_size=20,
).map(
    lambda rows: notes(
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        np.array([row[2] + row[3] for row in rows]),
    )
)


@given(TABLES, st.integers(0, 9), st.integers(0, 14))
def test_notes_come_back_to_half_a_unit(table: Notes, dataset: int, composer: int) -> None:
    numbers = to_numbers(table, dataset, composer)
    assert numbers.dtype == np.uint16
    assert numbers[:HEADER].tolist() == [dataset, composer]
    back = from_numbers(numbers[HEADER:])
    assert np.array_equal(back.pitch, table.pitch)
    assert np.array_equal(back.velocity, table.velocity)
    assert np.abs(back.start - table.start).max(initial=0) <= 0.5e-4 + 1e-9
    assert np.abs(back.end - table.end).max(initial=0) <= 1.5e-4
    assert (back.end > back.start).all()


def test_times_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="119 hours"):
        to_numbers(notes(np.array([60]), np.array([60]), np.array([0.0]), np.array([5e5])), 0, 0)


@pytest.mark.parametrize("token", DATASETS)
def test_a_collection_is_known_in_any_case(token: str) -> None:
    name = token.strip("<>")
    assert [dataset_token({"dataset": said}) for said in (name, name.lower(), name.title())] == [token] * 3


@pytest.mark.parametrize("source", [{}, {"dataset": None}, {"dataset": ""}, {"dataset": "MAESTRO-2"}, {"dataset": 7}])
def test_other_collections_and_none_have_the_last_token(source: dict) -> None:
    assert dataset_token(source) == "<PIANO_FOR_AI>"


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("Alexander Scriabin", "<SCRIABIN>"),
        ("César Franck", "<FRANCK>"),
        ("Wolfgang Amadeus Mozart", "<MOZART>"),
        ("CHOPIN, FRÉDÉRIC", "<CHOPIN>"),
        ("Felix Mendelssohn Bartholdy", "<MENDELSSON>"),
        ("liszt", "<LISZT>"),
        ("Franz Schubert", "<SCHUBERT>"),
        ("Johannes Brahms", "<BRAHMS>"),
        ("Joseph Haydn", "<HAYDN>"),
        ("L. v. Beethoven", "<BEETHOVEN>"),
        ("Mily Balakirev", "<BALAKIREV>"),
        ("Robert Schumann", "<SCHUMANN>"),
        ("Sergei Rachmaninoff", "<RACHMANIOFF>"),
        ("Bach", "<BACH>"),
        ("Johann Sebastian Bach / Franz Liszt", "<UNKNOWN_COMPOSER>"),
        ("Offenbach", "<UNKNOWN_COMPOSER>"),
        ("Franz von Suppé", "<UNKNOWN_COMPOSER>"),
        ("Unknown_composer", "<UNKNOWN_COMPOSER>"),
        ("", "<UNKNOWN_COMPOSER>"),
        (None, "<UNKNOWN_COMPOSER>"),
    ],
)
def test_a_composer_is_known_by_one_surname(name: str | None, token: str) -> None:
    assert composer_token({"composer": name}) == token


def test_a_piece_without_metadata_has_both_tokens() -> None:
    assert context_tokens({}) == ("<PIANO_FOR_AI>", "<UNKNOWN_COMPOSER>")
    assert context_tokens({"dataset": "maestro", "composer": "J. S. Bach"}) == ("<MAESTRO>", "<BACH>")


def test_there_are_ten_collections_and_fifteen_composers() -> None:
    assert (len(set(DATASETS)), len(set(COMPOSERS))) == (10, 15)
