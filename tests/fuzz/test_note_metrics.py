"""Metrics of notes against mir_eval and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.piano.metrics import DISTANCES, MatchScore, compare, note_score, sounding_f1
from quintet.piano.notes import Notes, notes

transcription = pytest.importorskip("mir_eval.transcription")
multipitch = pytest.importorskip("mir_eval.multipitch")
stats = pytest.importorskip("scipy.stats")

OF_VALUES = {
    "pitch": lambda table: table.pitch,
    "velocity": lambda table: table.velocity,
    "onset_interval": lambda table: np.diff(table.start),
    "duration": lambda table: table.end - table.start,
}


@st.composite
def tables(draw: st.DrawFn, least: int = 0, step: float | None = None) -> Notes:
    """Notes of few pitches: on a grid, so that many are exactly as far apart as they may be, or anywhere."""
    step = draw(st.sampled_from([0.01, 0.0125, 0.001])) if step is None else step
    time = st.integers(0, 300).map(lambda count: count * step)
    if draw(st.booleans()) and step != 0.01:
        time = st.floats(0, 3)
    row = st.tuples(
        st.integers(58, 63), st.integers(1, 127), time, st.one_of(st.integers(1, 40).map(lambda n: n * step))
    )
    rows = np.array(draw(st.lists(row, min_size=least, max_size=20)), dtype=np.float64).reshape(-1, 4)
    return notes(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 2] + rows[:, 3])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Notes, Notes]:
    """Generated and true notes: of their own, or the ones moved, stretched and struck otherwise."""
    target = draw(tables(least=1))
    if draw(st.booleans()):
        return draw(tables(least=1)), target
    near = st.lists(
        st.sampled_from([-0.051, -0.05, 0.0, 0.0, 0.03, 0.05, 0.0501]), min_size=len(target), max_size=len(target)
    )
    start = np.maximum(target.start + draw(near), 0)
    length = (target.end - target.start) * draw(st.sampled_from([0.8, 0.79, 1.0, 1.2, 1.21]))
    louder = draw(st.lists(st.integers(-14, 14), min_size=len(target), max_size=len(target)))
    return notes(target.pitch, np.clip(target.velocity + louder, 1, 127), start, start + length), target


def side(table: Notes) -> tuple[np.ndarray, np.ndarray]:
    """Intervals in seconds and pitches in hertz, as mir_eval takes them."""
    return np.stack([table.start, table.end], axis=1), 440 * 2 ** ((table.pitch - 69) / 12)


@given(pairs(), st.booleans())
def test_matches_are_those_of_mir_eval(pair: tuple[Notes, Notes], offset: bool) -> None:
    generated, target = pair
    ratio = 0.2 if offset else None
    expected = transcription.precision_recall_f1_overlap(*side(target), *side(generated), offset_ratio=ratio)
    assert note_score(generated, target, offset=offset) == MatchScore(*(pytest.approx(value) for value in expected[:3]))
    name = "note_offset_f1" if offset else "note_f1"
    assert compare(generated, target)[name] == pytest.approx(expected[2])


@given(pairs(), st.booleans())
def test_notes_of_close_velocities_match_as_mir_eval_matches_those_of_one_velocity(
    pair: tuple[Notes, Notes], offset: bool
) -> None:
    """mir_eval scales velocities before it compares them. So each velocity is a pitch of its own here: a step is 4
    cents, and the tolerance of 50 cents is that of 12 steps."""
    generated, target = pair
    sides = []
    for table in (target, generated):
        intervals, _ = side(table)
        cents = 1200.0 * (table.pitch - 57) + 4 * table.velocity
        sides += [intervals, 100 * 2 ** (cents / 1200)]
    ratio = 0.2 if offset else None
    expected = transcription.precision_recall_f1_overlap(*sides, offset_ratio=ratio, pitch_tolerance=50.0)
    score = note_score(generated, target, offset=offset, velocity=True)
    assert score == MatchScore(*(pytest.approx(value) for value in expected[:3]))
    name = "note_offset_velocity_f1" if offset else "note_velocity_f1"
    assert compare(generated, target)[name] == pytest.approx(expected[2])


@given(tables(step=0.01), tables(step=0.01))
def test_sounding_time_is_that_of_the_frames_of_mir_eval(generated: Notes, target: Notes) -> None:
    """Frames of 10 ms, on the grid of the notes: the F1 of their pitches follows from precision and recall."""
    times = np.arange(400) * 0.01 + 0.005
    frames = [
        [440 * 2 ** ((np.unique(table.pitch[(table.start < at) & (at < table.end)]) - 69) / 12) for at in times]
        for table in (target, generated)
    ]
    found = sounding_f1(generated, target)
    if not len(generated) or not len(target):
        assert found == float(len(generated) == len(target))
        return
    precision, recall = multipitch.metrics(times, frames[0], times, frames[1])[:2]
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert found == pytest.approx(expected)


@given(pairs())
def test_distances_of_values_are_those_of_scipy(pair: tuple[Notes, Notes]) -> None:
    for name, values in OF_VALUES.items():
        one, other = (values(table) for table in pair)
        found = DISTANCES[name](*pair)
        if len(one) and len(other):
            assert found == pytest.approx(stats.wasserstein_distance(one, other), abs=1e-9)
        else:
            assert found == 0 if len(one) == len(other) else np.isnan(found)
    generated, target = pair
    shares = [np.array([np.mean(table.pitch % 12 == place) for place in range(12)]) for table in pair]
    assert DISTANCES["pitch_class"](*pair) == pytest.approx(np.maximum(shares[0] - shares[1], 0).sum(), abs=1e-12)
    turns = [
        stats.wasserstein_distance(np.arange(12), np.arange(12), np.roll(shares[0], -turn), np.roll(shares[1], -turn))
        for turn in range(12)
    ]
    assert DISTANCES["pitch_class_circle"](*pair) == pytest.approx(min(turns), abs=1e-9)  # cut where nothing crosses
    spans = [table.end.max() - table.start.min() for table in pair]
    assert DISTANCES["density"](*pair) == pytest.approx(abs(len(generated) / spans[0] - len(target) / spans[1]))
