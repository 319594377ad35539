"""Tasks: each note is in the prompt or in the target, in the right number, and equal seeds give equal splits."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.piano.notes import Notes, notes
from quintet.piano.tasks import DEFAULT_TASKS, KINDS, Task, task_named, tasks_from

GRID = 0.0137  # seconds; no multiple below 2,000 of it is one of a window of 0.2 s
_PERCENTAGE_KINDS = ("low_notes", "high_notes", "short_notes", "long_notes", "random", "linear_random", "band_random")
PERCENTAGE_TASKS = tasks_from(
    [
        *(f"bottom_line_masking-x{lines}" for lines in (1, 2, 5)),
        *(f"top_line_masking-x{lines}" for lines in (1, 2, 3)),
        *(f"{kind}_masking-x{share}%" for kind in _PERCENTAGE_KINDS for share in range(5, 101, 5)),
    ]
)
"""The 146 tasks of piano_dataset from f482a59 (January 2026) on."""
OLDER_TASKS = tuple(Task(kind) for kind in KINDS if not KINDS[kind].units)
"""The tasks with a source and a target token, which piano-gpt had before."""
ALL = tasks_from([*(task.name for task in DEFAULT_TASKS), "low_notes-x7", "long_notes-x3", "chords", "chords-x5"])
ALL += (*PERCENTAGE_TASKS, *OLDER_TASKS)
MASKS = [task for task in ALL if not task.replaces]


@st.composite
def tables(draw: st.DrawFn, least: int = 0, most: int = 40) -> Notes:
    """Notes with many equal starts, pitches and lengths."""
    row = st.tuples(st.integers(21, 108), st.integers(1, 127), st.integers(0, 300), st.integers(1, 60))
    rows = np.array(draw(st.lists(row, min_size=least, max_size=most)), dtype=np.int64).reshape(-1, 4)
    return notes(rows[:, 0], rows[:, 1], GRID * rows[:, 2], GRID * (rows[:, 2] + rows[:, 3]))


def rows(table: Notes) -> list[tuple]:
    return list(zip(*(getattr(table, name).tolist() for name in ("pitch", "velocity", "start", "end")), strict=True))


def split(task: Task, table: Notes, seed: int = 0) -> tuple[Notes, Notes]:
    return task.split(table, np.random.default_rng(seed))


@settings(max_examples=400)
@given(st.sampled_from(MASKS), tables(), st.integers(0, 1000))
def test_every_note_is_in_exactly_one_of_prompt_and_target(task: Task, table: Notes, seed: int) -> None:
    before = rows(table)
    prompt, target = split(task, table, seed)
    assert Counter(rows(prompt)) + Counter(rows(target)) == Counter(before)
    assert rows(table) == before
    assert Counter(rows(task.whole(prompt, target))) == Counter(before)
    for part in (prompt, target):
        assert rows(part) == rows(notes(part.pitch, part.velocity, part.start, part.end))  # in the order of a table


@settings(max_examples=100)
@given(st.sampled_from(ALL), tables(), st.integers(0, 1000))
def test_the_same_seed_splits_the_same(task: Task, table: Notes, seed: int) -> None:
    assert [rows(part) for part in split(task, table, seed)] == [rows(part) for part in split(task, table, seed)]


@pytest.mark.parametrize("name", ["random-x50", "linear_random-x50", "band_random-x50", "velocity_denoising"])
def test_another_seed_splits_otherwise(name: str) -> None:
    table = scale(60)
    assert len({tuple(rows(split(task_named(name), table, seed)[0])) for seed in range(8)}) > 4


def test_a_split_draws_from_nothing_but_its_generator() -> None:
    table = scale(60)
    results = []
    for state in (1, 2):
        np.random.seed(state)
        results.append([rows(split(task, table)[0]) for task in ALL])
    assert results[0] == results[1]


def scale(count: int) -> Notes:
    """Notes one after the other, up and down the piano."""
    start = 0.31 * np.arange(count)
    pitch = 60 + np.rint(20 * np.sin(start)).astype(int)
    return notes(pitch, 20 + np.arange(count) % 100, start, start + 0.1 + 0.01 * (np.arange(count) % 17))


# ---- counts and extremes


@settings(max_examples=200)
@given(
    st.sampled_from([("high", "pitch", -1), ("low", "pitch", 1), ("short", "length", 1), ("long", "length", -1)]),
    tables(),
    st.integers(1, 50),
    st.booleans(),
)
def test_extremes_are_as_many_as_asked_for_and_ties_go_to_the_first(
    side: tuple[str, str, int], table: Notes, number: int, percent: bool
) -> None:
    name, field, sign = side
    prompt, target = split(task_named(f"{name}_notes_masking-x{number}{'%' if percent else ''}"), table)
    count = math.ceil(number * len(table) / 100) if percent else min(number, len(table))
    values = {"pitch": table.pitch.tolist(), "length": (table.end - table.start).tolist()}[field]
    expected = sorted(sorted(range(len(table)), key=lambda index: (sign * values[index], index))[:count])
    assert rows(target) == [rows(table)[index] for index in expected]
    assert len(prompt) == len(table) - count


@settings(max_examples=150)
@given(tables(), st.integers(1, 100), st.integers(0, 99))
def test_a_random_share_is_rounded_up(table: Notes, percentage: int, seed: int) -> None:
    assert len(split(task_named(f"random_masking-x{percentage}"), table, seed)[1]) == math.ceil(
        percentage * len(table) / 100
    )


def test_every_note_is_as_likely_to_be_drawn() -> None:
    table = scale(20)
    hits = Counter(row for seed in range(2000) for row in rows(split(task_named("random-x25"), table, seed)[1]))
    assert len(hits) == 20
    assert all(abs(hit - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75) for hit in hits.values())


@settings(max_examples=150)
@given(tables(), st.integers(1, 12))
def test_strides_are_every_second_block(table: Notes, length: int) -> None:
    prompt, target = split(task_named(f"stride_notes_masking-x{length}"), table)
    every = rows(table)
    blocks = [every[at : at + length] for at in range(0, len(every), length)]
    assert rows(prompt) == [row for block in blocks[::2] for row in block]
    assert rows(target) == [row for block in blocks[1::2] for row in block]


# ---- lines


def line_by_hand(table: list[tuple], repetitions: int, sign: int) -> list[tuple]:
    """Window by window, note by note; the windows of a line begin at its own first note."""
    left, found = list(table), []
    for _ in range(repetitions):
        if not left:
            break
        line, window = set(), 0
        while (opens := left[0][2] + 0.2 * window) <= left[-1][2]:
            heard = [i for i, (_, _, start, end) in enumerate(left) if start <= opens + 0.2 and end > opens]
            if heard:
                line.add(min(heard, key=lambda i: (-sign * left[i][0], i)))
            window += 1
        found += [left[i] for i in line]
        left = [row for i, row in enumerate(left) if i not in line]
    return sorted(found, key=lambda row: (row[2], row[0], row[3]))


@settings(max_examples=200)
@given(tables(), st.integers(1, 4), st.sampled_from([("top", 1), ("bottom", -1)]))
def test_lines_are_those_found_by_hand(table: Notes, repetitions: int, side: tuple[str, int]) -> None:
    target = split(task_named(f"{side[0]}_line_masking-x{repetitions}"), table)[1]
    expected = line_by_hand(rows(table), repetitions, side[1])
    assert Counter(rows(target)) == Counter(expected)


@settings(max_examples=50)
@given(tables(least=1))
def test_the_older_lines_are_one_line(table: Notes) -> None:
    for older, newer in (("top_line_prediction", "top_line-x1"), ("low_line_prediction", "bottom_line-x1")):
        assert rows(split(task_named(older), table)[1]) == rows(split(task_named(newer), table)[1])


def test_a_long_piece_is_looked_at_in_blocks() -> None:
    table = scale(3000)  # 4,650 windows of 3,000 notes: fourteen times what is looked at together
    assert rows(split(task_named("top_line"), table)[1]) == line_by_hand(rows(table), 1, 1)


# ---- chords


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(21, 108), st.integers(0, 25)), max_size=40), st.integers(2, 5))
def test_chords_lose_all_but_their_first_note(drawn: list[tuple[int, int]], least: int) -> None:
    gaps = np.array([gap for _, gap in drawn], dtype=np.float64).reshape(-1)
    start = np.cumsum(gaps) / 1000 + 0.0001 * np.arange(len(gaps))  # never 15 ms apart to the last digit
    table = notes(np.array([pitch for pitch, _ in drawn], dtype=np.int64), np.full(len(gaps), 60), start, start + 0.5)
    prompt, target = split(task_named(f"chord_masking-x{least}"), table)
    expected: list[tuple] = []
    chord: list[tuple] = []
    for row in [*rows(table), (0, 0, math.inf, math.inf)]:
        if chord and row[2] - chord[-1][2] < 0.015:
            chord.append(row)
            continue
        expected += chord[1:] if len(chord) >= least else []
        chord = [row]
    assert rows(target) == expected
    starts = table.start.tolist()
    assert all(row[2] - max(start for start in starts[: rows(table).index(row)]) < 0.015 for row in rows(target))
    assert len(prompt) > 0 or len(table) == 0


# ---- around a line


def test_linear_masks_are_the_notes_around_some_line() -> None:
    table = scattered(30, seed=4)
    found = set()
    for seed in range(40):
        target = rows(split(task_named("linear_random-x100"), table, seed)[1])
        possible = list(lines_by_hand(table))
        assert target in possible
        found.add(tuple(target))
    assert len(found) > 10


def lines_by_hand(table: Notes):
    begin, end = table.start[0] - 0.1, table.start[-1] + 0.1
    for low, high in itertools.product(set(table.pitch[:10].tolist()), set(table.pitch[-10:].tolist())):
        along = np.array([end - begin, high - low]) / np.hypot(end - begin, high - low)
        points = np.stack([table.start - begin, table.pitch - low], axis=1)
        rest = points - np.outer(points @ along, along)  # what is left of a point when its part along the line is gone
        for reach in range(2, 12):
            yield rows(table[np.linalg.norm(rest, axis=1) <= reach])


def test_band_masks_are_the_notes_inside_some_band() -> None:
    table = scattered(30, seed=5)
    possible = set()
    begin, end = table.start[0] - 0.1, table.start[-1] + 0.1
    for low, high in itertools.product(set(table.pitch[:10].tolist()), set(table.pitch[-10:].tolist())):
        for first, last in itertools.product(range(1, 11), repeat=2):
            above = np.interp(table.start, [begin, end], [low + first, high + last])
            below = np.interp(table.start, [begin, end], [low - first, high - last])
            possible.add(tuple(rows(table[(table.pitch <= above) & (table.pitch >= below)])))
    found = {tuple(rows(split(task_named("band_random-x100"), table, seed)[1])) for seed in range(40)}
    assert found <= possible
    assert len(found) > 10


@settings(max_examples=100)
@given(tables(), st.integers(1, 100), st.integers(0, 99), st.sampled_from(["linear", "band"]))
def test_a_share_of_the_notes_around_a_line_is_rounded_up(table: Notes, percentage: int, seed: int, shape: str) -> None:
    around = split(task_named(f"{shape}_random_masking-x100"), table, seed)[1]
    part = split(task_named(f"{shape}_random_masking-x{percentage}"), table, seed)[1]
    assert len(part) == math.ceil(percentage * len(around) / 100)
    assert not Counter(rows(part)) - Counter(rows(around))


def scattered(count: int, seed: int) -> Notes:
    random = np.random.default_rng(seed)
    start = np.sort(random.uniform(0, 20, count))
    return notes(random.integers(30, 95, count), np.full(count, 70), start, start + 0.4)


# ---- older tasks

SPANS = {
    "above_median": ("pitch", lambda x, q1, q2, q3: x >= q2),
    "below_median": ("pitch", lambda x, q1, q2, q3: x < q2),
    "above_low_quartile": ("pitch", lambda x, q1, q2, q3: x >= q1),
    "below_low_quartile": ("pitch", lambda x, q1, q2, q3: x < q1),
    "above_high_quartile": ("pitch", lambda x, q1, q2, q3: x >= q3),
    "below_high_quartile": ("pitch", lambda x, q1, q2, q3: x < q3),
    "middle_quartiles": ("pitch", lambda x, q1, q2, q3: q1 <= x < q3),
    "extreme_quartiles": ("pitch", lambda x, q1, q2, q3: x < q1 or x >= q3),
    "loud": ("velocity", lambda x, q1, q2, q3: x >= q2),
    "soft": ("velocity", lambda x, q1, q2, q3: x < q2),
    "very_soft": ("velocity", lambda x, q1, q2, q3: x < q1),
    "very_loud": ("velocity", lambda x, q1, q2, q3: x >= q3),
    "moderate_velocity": ("velocity", lambda x, q1, q2, q3: q1 <= x < q3),
    "extreme_velocity": ("velocity", lambda x, q1, q2, q3: x < q1 or x >= q3),
}


@settings(max_examples=200)
@given(st.sampled_from(sorted(SPANS)), tables(least=2))
def test_quartiles_are_those_of_statistics(name: str, table: Notes) -> None:
    field, inside = SPANS[name]
    values = getattr(table, field).tolist()
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    target = split(task_named(f"{name}_prediction"), table)[1]
    assert rows(target) == [row for row, value in zip(rows(table), values, strict=True) if inside(value, *quartiles)]


def test_fast_notes_are_shorter_than_a_fifth_of_a_second() -> None:
    table = notes(np.array([60, 61, 62]), np.array([9, 9, 9]), np.zeros(3), np.array([0.19, 0.2, 0.21]))
    assert split(task_named("fast_notes_prediction"), table)[1].pitch.tolist() == [60]


@settings(max_examples=150)
@given(st.sampled_from([task for task in OLDER_TASKS if task.replaces]), tables(), st.integers(0, 99))
def test_altered_prompts_are_tables_of_as_many_notes_on_the_piano(task: Task, table: Notes, seed: int) -> None:
    prompt, target = split(task, table, seed)
    assert rows(target) == rows(table) == rows(task.whole(prompt, target))
    assert len(prompt) == len(table)
    assert rows(prompt) == rows(notes(prompt.pitch, prompt.velocity, prompt.start, prompt.end))
    if len(prompt):
        assert (prompt.pitch.min() >= 21, prompt.pitch.max() <= 108) == (True, True)
        assert (prompt.velocity.min() >= 1, prompt.velocity.max() <= 127) == (True, True)
        assert prompt.start.min() >= 0
        assert (prompt.end > prompt.start).all()


@pytest.mark.parametrize(
    ("name", "altered"),
    [
        ("velocity_denoising", {"velocity": 30}),
        ("pitch_denoising", {"pitch": 5}),
        ("start_time_denoising", {"start": 0.3}),
        ("time_denoising", {"start": 0.3, "length": 0.3}),
        ("comprehensive_denoising", {"velocity": 30, "pitch": 5, "start": 0.3, "length": 0.3}),
    ],
)
def test_noise_has_the_named_width_and_alters_nothing_else(name: str, altered: dict[str, float]) -> None:
    count = 20_000
    start = 100 + 10.0 * np.arange(count)  # so far apart that the order stays
    table = notes(np.full(count, 64), np.full(count, 64), start, start + 2)
    prompt = split(task_named(name), table)[0]
    shifts = {
        "velocity": prompt.velocity - 64,
        "pitch": prompt.pitch - 64,
        "start": prompt.start - start,
        "length": prompt.end - prompt.start - 2,
    }
    for field, shift in shifts.items():
        if field not in altered:
            assert np.abs(shift).max() < 1e-9
            continue
        low, middle, high = np.quantile(shift, [0.1587, 0.5, 0.8413])  # one standard deviation of a normal to each side
        whole = 0.5 if field in ("velocity", "pitch") else 0.0
        width = altered[field]
        assert (low, middle, high) == pytest.approx((-width, 0, width), abs=0.04 * width + whole)


def test_a_performance_is_told_as_pitches_on_a_grid() -> None:
    prompt, target = split(task_named("performance_task"), scale(5))
    assert prompt.pitch.tolist() == target.pitch.tolist() == scale(5).pitch.tolist()
    assert prompt.start == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert prompt.end - prompt.start == pytest.approx(0.2)
    assert prompt.velocity.tolist() == [80] * 5


def test_a_performance_is_split_by_every_task(shared: Path) -> None:
    pytest.importorskip("symusic")
    from quintet.piano.midi import read_midi

    table = read_midi(shared / "data/midi/Chopin__Etudes_op_25__10__WangA03M.mid")[:128]
    assert len(table) == 128
    for task in ALL:
        prompt, target = split(task, table)
        assert task.replaces or len(prompt) + len(target) == 128
        assert len(target) > 0 or task.kind == "chord_masking", task.name  # an etude may have no chord of five
