from __future__ import annotations

import math
import threading
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import wait_until

from quintet.config.documents import IGNORED
from quintet.data.batch import Batch, TrainData, ValidationData, conditional_entropy, context_ids, prefetch
from quintet.data.mixture import EpochOrder, Order, WeightedOrder
from quintet.data.samples import Sample, Windows


@dataclass(frozen=True)
class Counting:
    """A stream whose token at a position is computed from it: ``first`` + position."""

    length: int
    first: int = 0

    def read(self, position: int, length: int) -> np.ndarray:
        assert position + length <= self.length
        return self.first + np.arange(position, position + length)

    def loss_mask(self, position: int, length: int) -> None:
        return None

    def documents(self, position: int, length: int) -> np.ndarray:
        return np.zeros(length, dtype=np.int64)

    def prompts(self, position: int, length: int) -> None:
        return None


def train_data(lengths: list[int], batch_size: int, length: int = 4, weights: tuple[float, ...] = ()) -> TrainData:
    streams = tuple(Windows(Counting(size, 1_000_000 * index), length) for index, size in enumerate(lengths))
    counts = tuple(stream.count for stream in streams)
    order: Order = WeightedOrder(counts, weights, 11, True) if weights else EpochOrder(counts, 11, True)
    return TrainData(streams, tuple(map(str, range(len(lengths)))), order, batch_size, length)


def same(left: Batch, right: Batch) -> bool:
    arrays = zip((left.inputs, left.targets, left.sources), (right.inputs, right.targets, right.sources), strict=True)
    return left.valid == right.valid and all(np.array_equal(one, other) for one, other in arrays)


def test_a_batch_has_the_promised_shapes_and_targets_are_shifted_by_one() -> None:
    batch = train_data([100, 50], 6).batch(0)
    assert batch.inputs.shape == batch.targets.shape == (6, 4)
    assert batch.inputs.dtype == batch.targets.dtype == np.int64
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
    np.testing.assert_array_equal(batch.sources, batch.inputs[:, 0] // 1_000_000)
    assert batch.valid == (batch.targets != -100).sum() == 24


@given(
    lengths=st.lists(st.integers(5, 200), min_size=1, max_size=4),
    batch_size=st.integers(1, 7),
    length=st.integers(2, 4),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60)
def test_an_epoch_has_every_target_of_every_sample_once(
    lengths: list[int], batch_size: int, length: int, epoch: int
) -> None:
    data = train_data(lengths, batch_size, length)
    first, last = epoch * data.epoch_samples, (epoch + 1) * data.epoch_samples
    steps = range(first // batch_size, -(-last // batch_size))
    rows = np.concatenate([data.batch(step).targets for step in steps])
    rows = rows[first - steps[0] * batch_size :][: data.epoch_samples]
    seen = np.sort(rows.reshape(-1))
    expected = [
        1_000_000 * index + position
        for index, size in enumerate(lengths)
        for position in range(1, (size - 1) // length * length + 1)
    ]
    np.testing.assert_array_equal(seen, expected)


@given(
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 9),
    step=st.integers(0, 10**6),
    weighted=st.booleans(),
)
@settings(max_examples=60)
def test_the_parts_of_all_ranks_are_the_whole_batch(
    batch_size: int, world_size: int, step: int, weighted: bool
) -> None:
    data = train_data([300, 77], batch_size, weights=(3.0, 1.0) if weighted else ())
    whole = data.batch(step)
    parts = [data.batch(step, rank, world_size) for rank in range(world_size)]
    joined = Batch(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.sources for part in parts]),
        sum(part.valid for part in parts),
    )
    assert same(joined, whole)
    sizes = [len(part.inputs) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_larger_batches_go_through_the_same_samples_in_the_same_order() -> None:
    small, large = train_data([500], 4), train_data([500], 12)
    for step in range(5):
        rows = np.concatenate([small.batch(3 * step + part).inputs for part in range(3)])
        np.testing.assert_array_equal(rows, large.batch(step).inputs)


def test_a_trillion_tokens_are_sampled_in_constant_memory(python_calls: Callable[[Callable[[], Any]], int]) -> None:
    stream, length, batch_size = Counting(10**12), 1024, 64
    order = EpochOrder((Windows(stream, length).count,), 1, True)
    data = TrainData((Windows(stream, length),), ("huge",), order, batch_size, length)
    data.batch(0)
    tracemalloc.start()
    for step in (0, 1, 10**5, data.epoch_samples // batch_size, 10**8):
        batch = data.batch(step)
        np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
        assert len(np.unique(batch.inputs[:, 0])) == batch_size
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_batch = 2 * 8 * batch_size * length
    assert peak < 6 * one_batch
    assert python_calls(lambda: data.batch(10**8)) < 20_000


def windows(batches: list[Batch]) -> list[tuple[int, int]]:
    return [
        (int(source), int(row[0])) for batch in batches for source, row in zip(batch.sources, batch.inputs, strict=True)
    ]


def test_all_validation_samples_are_all_windows_in_order() -> None:
    data = ValidationData(
        tuple(Windows(it, 4) for it in (Counting(21), Counting(4), Counting(10, 1_000_000))), ("a", "b", "c"), 4
    )
    expected = [(0, 0), (0, 4), (0, 8), (0, 12), (0, 16), (2, 1_000_000), (2, 1_000_004)]
    assert windows(list(data.batches(3, None))) == windows(list(data.batches(2, 1000))) == expected
    assert [len(batch.inputs) for batch in data.batches(3, None)] == [3, 3, 1]
    assert data.samples == 7
    assert data.tokens == 35


@given(
    lengths=st.lists(st.integers(5, 400), min_size=1, max_size=5),
    samples=st.integers(1, 60),
    batch_size=st.integers(1, 20),
)
@settings(max_examples=60)
def test_validation_samples_are_fixed_distinct_and_from_every_source(
    lengths: list[int], samples: int, batch_size: int
) -> None:
    streams = tuple(Windows(Counting(size, 1_000_000 * index), 4) for index, size in enumerate(lengths))
    data = ValidationData(streams, tuple(map(str, lengths)), 4)
    found = windows(list(data.batches(batch_size, samples)))
    assert found == windows(list(data.batches(7, samples)))
    assert len(set(found)) == len(found) == min(samples, data.samples)
    if samples >= len(lengths):
        assert {source for source, _ in found} == set(range(len(lengths)))
    for source in range(len(lengths)):
        gaps = np.diff([start for owner, start in found if owner == source]) // 4
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_a_number_of_samples_of_each_source_is_of_each_whatever_their_sizes() -> None:
    streams = tuple(Windows(Counting(size, 1_000_000 * index), 4) for index, size in enumerate((21, 401, 9)))
    data = ValidationData(streams, ("a", "b", "c"), 4, each=True)
    for samples, counts in ((1, [1, 1, 1]), (4, [4, 4, 2]), (50, [5, 50, 2]), (None, [5, 100, 2])):
        found = windows(list(data.batches(3, samples)))
        assert [sum(owner == source for owner, _ in found) for source in range(3)] == counts
        assert len(set(found)) == sum(counts)


def numbered(step: int) -> Batch:
    return Batch(np.array([[step]]), np.array([[step]]), np.array([0]), 1)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_prefetched_batches_come_in_order_and_all(ahead: int) -> None:
    assert [int(batch.inputs[0, 0]) for batch in prefetch(numbered, 3, 17, ahead)] == list(range(3, 17))
    assert list(prefetch(numbered, 5, 5, ahead)) == []


def test_batches_are_computed_ahead_but_not_further() -> None:
    computed: list[int] = []

    def batch_of(step: int) -> Batch:
        computed.append(step)
        return numbered(step)

    batches = prefetch(batch_of, 0, 100, ahead=2)
    next(batches)
    wait_until(lambda: len(computed) >= 3)
    time.sleep(0.02)
    assert computed == [0, 1, 2]
    batches.close()  # type: ignore[attr-defined]


def test_an_error_is_raised_where_its_batch_is_asked_for() -> None:
    def batch_of(step: int) -> Batch:
        if step == 2:
            raise OSError("the disk is gone")
        return numbered(step)

    batches = prefetch(batch_of, 0, 10)
    assert [int(next(batches).inputs[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_closing_ends_the_thread_at_once() -> None:
    started: list[int] = []

    def slow(step: int) -> Batch:
        started.append(step)
        time.sleep(0.05)
        return numbered(step)

    batches = prefetch(slow, 0, 1000, ahead=50)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    assert len(started) <= 3


@dataclass(frozen=True)
class Fixed:
    """Samples that the test made."""

    all: tuple[Sample, ...]
    tokens: int = 0

    @property
    def count(self) -> int:
        return len(self.all)

    def sample(self, index: int) -> Sample:
        return self.all[index]


def test_short_samples_are_padded_and_what_is_not_learnt_has_no_target() -> None:
    yes, no = True, False
    samples = (
        Sample(np.array([1, 2, 3, 4, 5])),
        Sample(np.array([6, 7, 8]), np.array([yes, no, yes]), np.array([0, 0, 1]), np.array([yes, no, no])),
    )
    data = ValidationData((Fixed(samples),), ("a",), 4)
    [batch] = data.batches(2, None)
    assert batch.inputs.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 4, 5], [-100, 8, -100, -100]]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 0], [0, 0, -1, -1]]
    assert batch.prompts is not None
    assert batch.prompts.tolist() == [[no] * 4, [yes, no, no, no]]
    assert (batch.valid, batch.sources.tolist()) == (5, [0, 0])
    first, _ = data.batches(1, None)
    assert (first.valid, first.prompts) == (4, None)


ROWS, LENGTH, IDS = 5, 6, 3


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw inputs, targets, documents and prompts of a batch in which beginnings repeat."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    inputs = random.integers(0, IDS, (ROWS, LENGTH))
    targets = np.where(random.random((ROWS, LENGTH)) < 0.2, IGNORED, random.integers(0, IDS, (ROWS, LENGTH)))
    documents = np.cumsum(random.random((ROWS, LENGTH)) < 0.3, axis=1)
    return inputs, targets, documents, random.random((ROWS, LENGTH)) < 0.2


def view(
    ids: list[int], document: list[int] | None, prompt: list[bool] | None, place: int, ahead: bool, places: bool
) -> Hashable:
    """Return what the position at ``place`` sees, in a comparable form."""
    same = [one for one in range(LENGTH) if document is None or document[one] == document[place]]
    first = same[0]
    if ahead:
        text: Hashable = (tuple(ids[one] for one in same), place - first)
    else:
        text = tuple(ids[one] for one in same if one <= place)
    return text, (first if places else None), prompt and sum(prompt[one] for one in same)


def by_hand(targets: np.ndarray, views: list[list[Hashable]]) -> float:
    """-log of each target's share among those of its view, mean over the targets that count."""
    seen: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for row, target in zip(views, targets.tolist(), strict=True):
        for one, label in zip(row, target, strict=True):
            if label != IGNORED:
                seen[one][label] += 1
    total = sum(counter.total() for counter in seen.values())
    return sum(-n * math.log(n / counter.total()) for counter in seen.values() for n in counter.values()) / (total or 1)


@settings(max_examples=150)
@given(batches(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_the_lowest_loss_is_that_of_the_counts(batch, ahead: bool, places: bool, told: bool, prompted: bool) -> None:
    inputs, targets, documents, prompts = batch
    views = [
        [
            view(
                inputs[row].tolist(),
                documents[row].tolist() if told else None,
                prompts[row].tolist() if prompted else None,
                place,
                ahead,
                places,
            )
            for place in range(LENGTH)
        ]
        for row in range(ROWS)
    ]
    seen = context_ids(
        inputs, documents if told else None, prompts if prompted else None, ahead=ahead, positions=places
    )
    flat = [one for row in views for one in row]
    numbers = seen.ravel().tolist()
    assert len(set(numbers)) == len(set(flat)) == len(set(zip(numbers, flat, strict=True)))
    assert conditional_entropy(targets, seen) == pytest.approx(by_hand(targets, views), abs=1e-12)


@given(batches(), st.integers(0, 2**32))
def test_no_prediction_from_what_is_seen_is_better(batch, seed: int) -> None:
    inputs, targets, _, _ = batch
    seen, valid = context_ids(inputs), targets != IGNORED
    table = np.random.default_rng(seed).dirichlet(np.ones(IDS), int(seen.max()) + 1)
    loss = -np.log(table[seen[valid], targets[valid]]).mean() if valid.any() else 0.0
    assert conditional_entropy(targets, seen) <= loss + 1e-12


def test_known_lowest_losses() -> None:
    inputs = np.array([[0, 1], [0, 1], [0, 2], [0, 2]])
    targets = np.array([[1, 5], [1, 6], [2, 5], [2, IGNORED]])
    # After 0 come 1, 1, 2, 2: ln 2 for four targets. After 0 1 come 5 and 6: ln 2 for two. After 0 2 comes only 5.
    assert conditional_entropy(targets, context_ids(inputs)) == pytest.approx(6 / 7 * math.log(2))
    # For a model that sees the next ids, only the target after the last id is uncertain.
    assert conditional_entropy(targets, context_ids(inputs, ahead=True)) == pytest.approx(2 / 7 * math.log(2))
    assert conditional_entropy(np.full((2, 2), IGNORED), context_ids(inputs[:2])) == 0.0
