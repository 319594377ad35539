"""Baselines: copies by rule, and counts of tokens against manual counts and a known Markov chain."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.piano.baselines import bigram, copied, nats_per_token, unigram
from quintet.piano.metrics import note_score
from quintet.piano.notes import Notes, notes
from quintet.piano.tasks import DEFAULT_TASKS, KINDS, Task, task_named

ALL = (*DEFAULT_TASKS, *map(task_named, KINDS))
sequences = st.lists(
    st.lists(st.integers(0, 4), max_size=12).map(lambda ids: np.array(ids, dtype=np.uint32)), max_size=6
)


# ---- counts of tokens


@settings(max_examples=100)
@given(sequences, st.lists(st.integers(0, 4), min_size=2, max_size=10))
def test_a_unigram_is_counts_with_one_added(learned: list[np.ndarray], ids: list[int]) -> None:
    counts = Counter(token for one in learned for token in one.tolist())
    total = sum(counts.values())
    expected = [-math.log((counts[token] + 1) / (total + 5)) for token in ids[1:]]
    assert unigram(learned, 5).nats(np.array(ids)) == pytest.approx(expected)


@settings(max_examples=100)
@given(sequences, st.lists(st.integers(0, 4), min_size=2, max_size=10))
def test_a_bigram_is_counts_of_pairs_with_one_added(learned: list[np.ndarray], ids: list[int]) -> None:
    pairs = Counter(pair for one in learned for pair in zip(one.tolist(), one.tolist()[1:], strict=False))
    before = Counter(first for (first, _), count in pairs.items() for _ in range(count))
    expected = [
        -math.log((pairs[first, second] + 1) / (before[first] + 5)) for first, second in itertools.pairwise(ids)
    ]
    assert bigram(learned, 5).nats(np.array(ids)) == pytest.approx(expected)


@settings(max_examples=50)
@given(sequences, st.integers(0, 4))
def test_probabilities_add_up_to_one(learned: list[np.ndarray], first: int) -> None:
    for model in (unigram(learned, 5), bigram(learned, 5)):
        assert sum(math.exp(-model.nats(np.array([first, second])).item()) for second in range(5)) == pytest.approx(1)


def test_without_counts_every_token_is_as_likely() -> None:
    ids = [np.array([1, 2, 3, 4])]
    assert nats_per_token(unigram([], 7), ids) == pytest.approx(math.log(7))
    assert nats_per_token(bigram([], 7), ids) == pytest.approx(math.log(7))
    assert math.isnan(nats_per_token(unigram([], 7), [np.array([1])]))


def test_a_known_chain_costs_its_entropy() -> None:
    """Each of three tokens is followed by itself with 0.8 and by the others with 0.1 each."""
    random = np.random.default_rng(0)
    steps = random.choice(3, 200_000, p=[0.8, 0.1, 0.1])
    ids = np.cumsum(steps) % 3
    learned, seen = [ids[:100_000]], [ids[100_000:]]
    rate = -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))
    assert nats_per_token(bigram(learned, 3), seen) == pytest.approx(rate, abs=0.01)
    assert nats_per_token(unigram(learned, 3), seen) == pytest.approx(math.log(3), abs=0.01)


def test_only_the_tokens_that_count_count() -> None:
    model = unigram([np.array([0, 0, 0, 1])], 3)
    ids = [np.array([2, 0, 1]), np.array([2, 2])]
    counted = [np.array([True, False]), np.array([False])]
    assert nats_per_token(model, ids, counted) == pytest.approx(-math.log(4 / 7))
    assert nats_per_token(model, ids) == pytest.approx(-(math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3)


def test_a_large_vocabulary_needs_no_table_of_pairs() -> None:
    ids = np.random.default_rng(1).integers(0, 2**20, 10_000)
    model = bigram([ids], 2**20)
    assert len(model.pairs) <= 9_999
    assert model.nats(ids[:2]).item() == pytest.approx(math.log((2**20 + model.before[ids[0]]) / 2))


# ---- copies


def piece(count: int = 40) -> Notes:
    random = np.random.default_rng(3)
    start = np.cumsum(random.uniform(0.02, 0.4, count))
    pitch, velocity = random.integers(30, 95, count), random.integers(20, 110, count)
    return notes(pitch, velocity, start, start + random.uniform(0.05, 1, count))


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_every_task_has_a_copy_on_the_piano(task: Task) -> None:
    prompt, target = task.split(piece(), np.random.default_rng(0))
    answer = copied(task, prompt, len(target))
    again = notes(answer.pitch, answer.velocity, answer.start, answer.end)
    assert np.array_equal(answer.start, again.start)
    assert (answer.end > answer.start).all()
    if len(answer):
        assert answer.pitch.min() >= 21
        assert answer.pitch.max() <= 108
        assert len(prompt)
    assert len(copied(task, prompt[:0], 5)) == 0
    assert {*(answer.pitch % 12).tolist()} <= {*(prompt.pitch % 12).tolist()}


def test_a_task_that_replaces_is_answered_by_its_prompt() -> None:
    task = task_named("velocity_denoising")
    prompt, target = task.split(piece(), np.random.default_rng(0))
    assert copied(task, prompt, len(target)) is prompt
    assert note_score(prompt, target).f1 == 1
    assert note_score(prompt, target, velocity=True).f1 < 0.6


@pytest.mark.parametrize("name", ["top_line", "above_median", "high_notes-x6", "top_line_prediction"])
def test_a_melody_doubled_in_octaves_is_copied_without_a_fault(name: str) -> None:
    start = 1.0 * np.arange(6)
    low = np.array([60, 62, 64, 65, 67, 69])
    doubled = notes(np.concatenate([low, low + 12]), np.full(12, 60), np.tile(start, 2), np.tile(start + 0.5, 2))
    task = task_named(name)
    prompt, target = task.split(doubled, np.random.default_rng(0))
    assert note_score(copied(task, prompt, len(target)), target).f1 == 1


@pytest.mark.parametrize("name", ["bottom_line", "below_median", "low_notes-x6", "low_line_prediction"])
def test_so_is_a_bass(name: str) -> None:
    start = 1.0 * np.arange(6)
    high = np.array([60, 62, 64, 65, 67, 69])
    doubled = notes(np.concatenate([high, high - 12]), np.full(12, 60), np.tile(start, 2), np.tile(start + 0.5, 2))
    task = task_named(name)
    prompt, target = task.split(doubled, np.random.default_rng(0))
    assert note_score(copied(task, prompt, len(target)), target).f1 == 1


def test_a_repeated_pattern_is_copied_by_its_stride() -> None:
    start = 0.25 * np.arange(24)
    pattern = notes(np.tile([60, 64, 67], 8), np.full(24, 60), start, start + 0.2)
    task = task_named("stride-x3")
    prompt, target = task.split(pattern, np.random.default_rng(0))
    assert note_score(copied(task, prompt, len(target)), target).f1 == 1


def test_copies_are_as_many_as_are_missing() -> None:
    prompt = piece()
    for name in ("high_notes-x7", "random-x20", "short_notes-x7", "loud"):
        assert len(copied(task_named(name), prompt, 7)) == 7
        assert len(copied(task_named(name), prompt, 0)) == 0


def test_the_piano_ends_at_its_highest_key() -> None:
    prompt = notes(np.array([100, 60]), np.array([60, 60]), np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    assert copied(task_named("high_notes-x5"), prompt, 2).pitch.tolist() == [72]
