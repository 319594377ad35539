from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.data.mixture import BLOCK, EpochOrder, Order, WeightedOrder, apportion
from quintet.errors import UserError

COUNTS = st.lists(st.integers(1, 400), min_size=1, max_size=5)


def draw(order: Order, first: int, last: int) -> list[tuple[int, int]]:
    sources, samples = order.at(np.arange(first, last))
    return list(zip(sources.tolist(), samples.tolist(), strict=True))


@given(counts=COUNTS, epoch=st.integers(0, 5), seed=st.integers(0, 1000), shuffle=st.booleans())
@settings(max_examples=50, deadline=None)
def test_without_weights_an_epoch_has_every_sample_once(
    counts: list[int], epoch: int, seed: int, shuffle: bool
) -> None:
    total = sum(counts)
    drawn = draw(EpochOrder(tuple(counts), seed, shuffle), epoch * total, (epoch + 1) * total)
    everything = [(source, sample) for source, count in enumerate(counts) for sample in range(count)]
    assert sorted(drawn) == everything
    if not shuffle:
        assert drawn == everything


def test_epochs_and_seeds_have_different_orders() -> None:
    order = EpochOrder((50, 50), 1, True)
    first, second, other = draw(order, 0, 100), draw(order, 100, 200), draw(EpochOrder((50, 50), 2, True), 0, 100)
    assert first != second
    assert first != other


@given(
    counts=COUNTS,
    weights=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
    shuffle=st.booleans(),
    block=st.integers(0, 3),
)
@settings(max_examples=30, deadline=None)
def test_with_weights_every_block_has_the_exact_shares(
    counts: list[int], weights: list[float], shuffle: bool, block: int
) -> None:
    used = tuple(weights[: len(counts)])
    sources, _ = WeightedOrder(tuple(counts), used, 7, shuffle).at(np.arange(block * BLOCK, (block + 1) * BLOCK))
    found = np.bincount(sources, minlength=len(counts))
    exact = BLOCK * np.array(used) / sum(used)
    assert (found >= 1).all()
    small = np.maximum(1 - exact, 0).sum()  # what sources of less than one slot were given more than their share
    assert (np.abs(found - exact) < 1 + small).all()


@given(counts=COUNTS, shuffle=st.booleans())
@settings(max_examples=20, deadline=None)
def test_with_weights_each_source_goes_through_its_own_epochs(counts: list[int], shuffle: bool) -> None:
    weights = tuple(float(1 + index) for index in range(len(counts)))
    drawn = draw(WeightedOrder(tuple(counts), weights, 3, shuffle), 0, 3 * BLOCK)
    for source, count in enumerate(counts):
        samples = [sample for owner, sample in drawn if owner == source]
        # Ranks are in order from block to block, not inside one: what counts is how often each sample was seen.
        seen = np.bincount(samples, minlength=count)
        assert seen.max() - seen.min() <= 1
        if not shuffle:
            assert samples == [index % count for index in range(len(samples))]


def test_unshuffled_sources_are_spread_evenly_within_a_block() -> None:
    sources, _ = WeightedOrder((10, 10), (3.0, 1.0), 0, False).at(np.arange(BLOCK))
    for start in range(0, BLOCK, 4):
        assert (sources[start : start + 4] == 1).sum() == 1


@given(
    positions=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20),
    weights=st.sampled_from([None, (1.0, 2.0, 0.5)]),
    shuffle=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_position_has_the_same_sample_alone_and_among_others(
    positions: list[int], weights: tuple[float, ...] | None, shuffle: bool
) -> None:
    counts = (1000, 7, 123_456_789)
    order = EpochOrder(counts, 5, shuffle) if weights is None else WeightedOrder(counts, weights, 5, shuffle)
    sources, samples = order.at(np.array(positions))
    for position, source, sample in zip(positions, sources, samples, strict=True):
        alone = order.at(np.array([position]))
        assert (int(alone[0][0]), int(alone[1][0])) == (int(source), int(sample))
        assert 0 <= sample < counts[source]


@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=20), slots=st.integers(20, 5000))
def test_shares_follow_the_largest_remainders(weights: list[int], slots: int) -> None:
    shares = apportion(weights, slots, least=0)
    assert sum(shares) == slots
    # Hamilton's method in whole numbers: floors first, then one more for the largest remainders.
    floors = [slots * weight // sum(weights) for weight in weights]
    remainders = [slots * weight % sum(weights) for weight in weights]
    more = [index for index, share in enumerate(shares) if share == floors[index] + 1]
    assert all(share - floor in (0, 1) for share, floor in zip(shares, floors, strict=True))
    others = [remainder for index, remainder in enumerate(remainders) if index not in more]
    assert not more or not others or min(remainders[index] for index in more) >= max(others)


def test_a_weight_that_is_next_to_nothing_still_gives_one_sample_a_block() -> None:
    assert apportion((1e-9, 1.0, 1.0), 4096) == [1, 2048, 2047]


def test_more_weights_than_a_block_has_places_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.sources: 4097 sources"):
        WeightedOrder((1,) * 4097, (1.0,) * 4097, 0, True)


def test_a_trillion_samples_take_neither_memory_nor_time() -> None:
    counts = (10**12, 3 * 10**11, 5)
    tracemalloc.start()
    began = time.perf_counter()
    for order in (EpochOrder(counts, 1, True), WeightedOrder(counts, (0.5, 0.3, 0.2), 1, True)):
        for step in (0, 10**6, 10**9):
            sources, samples = order.at(np.arange(step * 512, (step + 1) * 512))
            assert (samples < np.array(counts)[sources]).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert time.perf_counter() - began < 2
