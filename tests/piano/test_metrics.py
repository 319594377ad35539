"""Metrics against mir_eval, scipy, frames of a piano roll, and exhaustive search."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from quintet.errors import UserError
from quintet.piano import metrics
from quintet.piano.metrics import DISTANCES, compare, mean, note_score, sounding_f1, wasserstein
from quintet.piano.notes import Notes, notes

NONE = notes(np.empty(0), np.empty(0), np.empty(0), np.empty(0))


@st.composite
def tables(draw: st.DrawFn, least: int = 0, most: int = 15) -> Notes:
    """Notes of few pitches on a grid of 10 ms, so that many can match and many are exactly 50 ms apart."""
    row = st.tuples(st.integers(60, 62), st.integers(40, 70), st.integers(0, 40), st.integers(1, 40))
    rows = np.array(draw(st.lists(row, min_size=least, max_size=most)), dtype=np.int64).reshape(-1, 4)
    return notes(rows[:, 0], rows[:, 1], rows[:, 2] * 0.01, (rows[:, 2] + rows[:, 3]) * 0.01)


def table(*rows: tuple[int, int, float, float]) -> Notes:
    return notes(*(np.array(column) for column in zip(*rows, strict=True)))


@settings(max_examples=200)
@given(tables(least=1), tables(least=1), st.booleans())
def test_notes_match_as_in_mir_eval(generated: Notes, target: Notes, offset: bool) -> None:
    from mir_eval.transcription import precision_recall_f1_overlap
    from mir_eval.util import midi_to_hz

    sides = [(np.stack([side.start, side.end], axis=1), midi_to_hz(side.pitch)) for side in (target, generated)]
    expected = precision_recall_f1_overlap(*sides[0], *sides[1], offset_ratio=0.2 if offset else None)[:3]
    score = note_score(generated, target, offset=offset)
    assert (score.precision, score.recall, score.f1) == pytest.approx(expected)


@settings(max_examples=200)
@given(tables(least=1, most=6), tables(least=1, most=6), st.booleans())
def test_velocities_may_differ_by_a_tenth(generated: Notes, target: Notes, offset: bool) -> None:
    def fits(i: int, j: int) -> bool:
        if generated.pitch[i] != target.pitch[j] or abs(int(generated.velocity[i]) - int(target.velocity[j])) > 12:
            return False
        hundredths = [round(100 * time) for side in ((generated, i), (target, j)) for time in _times(*side)]
        start, end, true_start, true_end = hundredths
        longest = max(0.2 * (true_end - true_start), 5) if offset else np.inf
        return abs(start - true_start) <= 5 and abs(end - true_end) <= longest + 1e-9

    @cache
    def most(i: int, free: frozenset[int]) -> int:
        """The largest matching of the generated notes from i on, by exhaustive search."""
        if i == len(generated):
            return 0
        return max([most(i + 1, free), *(1 + most(i + 1, free - {j}) for j in free if fits(i, j))])

    matched = most(0, frozenset(range(len(target))))
    score = note_score(generated, target, velocity=True, offset=offset)
    assert score.precision == pytest.approx(matched / len(generated))
    assert score.recall == pytest.approx(matched / len(target))
    assert score.f1 == pytest.approx(2 * matched / (len(generated) + len(target)))


def _times(side: Notes, index: int) -> tuple[float, float]:
    return float(side.start[index]), float(side.end[index])


@settings(max_examples=150)
@given(tables(), tables())
def test_sounding_time_is_that_of_the_frames_of_a_roll(generated: Notes, target: Notes) -> None:
    rolls = np.zeros((2, 128, 100), dtype=bool)  # frames of 10 ms
    for roll, side in zip(rolls, (generated, target), strict=True):
        for index in range(len(side)):
            start, end = _times(side, index)
            roll[side.pitch[index], round(100 * start) : round(100 * end)] = True
    both, total = (rolls[0] & rolls[1]).sum(), rolls.sum()
    assert sounding_f1(generated, target) == pytest.approx(2 * both / total if total else 1)


values = st.lists(st.floats(-50, 50) | st.integers(-5, 5).map(float), min_size=1, max_size=20)


@settings(max_examples=200)
@given(values, values)
def test_distance_of_distributions_is_that_of_scipy(one: list[float], other: list[float]) -> None:
    expected = stats.wasserstein_distance(one, other)
    assert wasserstein(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-9)


shares = st.lists(st.integers(0, 6), min_size=12, max_size=12).filter(any).map(lambda n: np.array(n) / sum(n))


@settings(max_examples=40)
@given(shares, shares)
def test_work_around_a_circle_is_that_of_the_best_transport(one: np.ndarray, other: np.ndarray) -> None:
    steps = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    cost = np.minimum(steps, 12 - steps)
    leaves, arrives = np.kron(np.eye(12), np.ones(12)), np.kron(np.ones(12), np.eye(12))
    best = optimize.linprog(cost.ravel(), A_eq=np.vstack([leaves, arrives]), b_eq=np.concatenate([one, other]))
    assert metrics.circular_wasserstein(one, other) == pytest.approx(best.fun, abs=1e-6)


def test_a_semitone_and_a_seventh_are_as_far_on_the_circle() -> None:
    c, c_sharp, b = (table((pitch, 60, 0.0, 1.0)) for pitch in (60, 61, 71))
    assert DISTANCES["pitch_class_circle"](c, c_sharp) == DISTANCES["pitch_class_circle"](c, b) == 1
    assert DISTANCES["pitch_class"](c, b) == 1
    assert DISTANCES["pitch_class"](c, table((72, 60, 0.0, 1.0))) == 0


def test_each_distance_is_what_its_name_says() -> None:
    generated = table((60, 60, 0.0, 1.0), (64, 70, 0.5, 1.0), (67, 80, 1.0, 2.0))
    target = table((60, 50, 1.0, 3.0), (72, 50, 3.0, 5.0))
    expected = {
        "pitch_class": 2 / 3,  # C, E, G a third each against C alone
        "pitch_class_circle": (4 + 5) / 3,
        "pitch": stats.wasserstein_distance([60, 64, 67], [60, 72]),
        "pitch_range": 12 - 7,
        "density": 3 / 2 - 2 / 4,
        "velocity": 70 - 50,
        "onset_interval": 2 - 0.5,
        "duration": 2 - 2.5 / 3,
    }
    assert {name: distance(generated, target) for name, distance in DISTANCES.items()} == pytest.approx(expected)


@settings(max_examples=60)
@given(tables(least=2))
def test_notes_agree_with_themselves(same: Notes) -> None:
    result = compare(same, same)
    assert result == pytest.approx({name: 0.0 if name in DISTANCES else 1.0 for name in result})


@settings(max_examples=60)
@given(tables(least=2), tables(least=2), st.floats(0.5, 20))
def test_distances_are_symmetric_and_do_not_follow_the_clock(one: Notes, other: Notes, later: float) -> None:
    for name, distance in DISTANCES.items():
        assert distance(one, other) == pytest.approx(distance(other, one), abs=1e-9), name
        assert distance(one.moved(later), other) == pytest.approx(distance(one, other), abs=1e-6), name


def test_nothing_for_nothing_is_right() -> None:
    result = compare(NONE, NONE)
    assert result == {name: 0.0 if name in DISTANCES else 1.0 for name in result}


@pytest.mark.parametrize("missing", ["generated", "target"])
def test_nothing_for_something_is_wrong_and_has_no_distribution(missing: str) -> None:
    some = table((60, 60, 0.0, 1.0), (64, 70, 0.5, 1.0), (67, 80, 1.0, 2.0))
    result = compare(NONE, some) if missing == "generated" else compare(some, NONE)
    numbers = {"pitch_range": 7.0, "density": 1.5}
    for name, value in result.items():
        expected = numbers.get(name, float("nan")) if name in DISTANCES else 0.0
        assert value == pytest.approx(expected, nan_ok=True), name


def test_one_note_has_no_intervals() -> None:
    one, two = table((60, 60, 0.0, 1.0)), table((60, 60, 0.0, 1.0), (62, 60, 0.5, 1.0))
    assert DISTANCES["onset_interval"](one, one) == 0
    assert np.isnan(DISTANCES["onset_interval"](one, two))


def test_fifty_milliseconds_on_a_grid_are_fifty_milliseconds() -> None:
    for step in range(400):
        true, late, too_late = (table((60, 60, 0.01 * at, 0.01 * at + 1)) for at in (step, step + 5, step + 6))
        assert note_score(late, true).f1 == note_score(true, late).f1 == 1
        assert note_score(too_late, true).f1 == note_score(true, too_late).f1 == 0


def test_ends_may_differ_by_a_fifth_of_the_true_length() -> None:
    true = table((60, 60, 0.0, 1.0))
    for end, matches in ((0.8, 1), (0.79, 0), (1.2, 1), (1.21, 0)):
        made = table((60, 60, 0.0, end))
        assert (note_score(made, true, offset=True).f1, note_score(made, true).f1) == (matches, 1)


def test_each_f1_has_the_conditions_of_its_name() -> None:
    """Of six matches one is exact, two end elsewhere, three are louder; one more note is made, and two are missing."""
    true = table(*((60, 40, float(at), at + 0.5) for at in range(8)))
    wrong = [(0, 0.0), (0, 0.2), (0, -0.2), (13, 0.0), (13, 0.0), (13, 0.0)]
    made = table(
        *((60, 40 + louder, float(at), at + 0.5 + end) for at, (louder, end) in enumerate(wrong)), (60, 40, 9, 10)
    )
    expected = {
        "note_precision": 6 / 7,
        "note_recall": 6 / 8,
        "note_f1": 12 / 15,
        "note_offset_f1": 8 / 15,
        "note_velocity_f1": 6 / 15,
        "note_offset_velocity_f1": 2 / 15,
    }
    found = compare(made, true)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_each_tolerance_is_as_large_as_the_guide_says() -> None:
    """Onsets 50 ms; ends a fifth of the true length, or 50 ms where that is more; velocities 12 steps."""
    for length, reach in ((0.1, 0.05), (0.25, 0.05), (0.26, 0.052), (2.0, 0.4)):
        true = table((60, 60, 1.0, 1 + length))
        for sign in (-1, 1):
            ends = [table((60, 60, 1.0, 1 + length + sign * (reach + more))) for more in (0.0, 0.0002)]
            assert [note_score(made, true, offset=True).f1 for made in ends] == [1, 0]
    true = table((60, 60, 1.0, 2.0))
    for sign in (-1, 1):
        starts = [table((60, 60, 1 + sign * (0.05 + more), 2.0)) for more in (0.0, 0.00004, 0.0002)]
        assert [note_score(made, true).f1 for made in starts] == [1, 1, 0]  # compared at 0.1 ms
        loud = [table((60, 60 + sign * steps, 1.0, 2.0)) for steps in (12, 13)]
        assert [note_score(made, true, velocity=True).f1 for made in loud] == [1, 0]
    assert note_score(table((61, 60, 1.0, 2.0)), true).f1 == 0


def test_the_mean_leaves_out_what_is_not_defined() -> None:
    nan = float("nan")
    result = mean([{"a": 1.0, "b": nan, "c": nan}, {"a": 2.0, "b": 4.0, "c": nan}])
    assert result == pytest.approx({"a": 1.5, "b": 4.0, "c": nan}, nan_ok=True)
    assert mean([]) == {}


def test_scipy_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    one = table((60, 60, 0.0, 1.0))
    with pytest.raises(UserError, match=r"needs scipy, which is not installed; pip install 'quintet\[piano\]'"):
        note_score(one, one)
