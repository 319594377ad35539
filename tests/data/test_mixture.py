from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import MakeConfig

from quintet.config.schema import RunConfig
from quintet.data.mixture import (
    BLOCK,
    EpochOrder,
    MixtureStage,
    Order,
    WeightedOrder,
    apportion,
    build_order,
    stage_facts,
    stage_lines,
)
from quintet.data.permutation import Permutation
from quintet.errors import UserError
from quintet.randomness import key

COUNTS = st.lists(st.integers(1, 400), min_size=1, max_size=5)


def draw(order: Order, first: int, last: int) -> list[tuple[int, int]]:
    sources, samples = order.at(np.arange(first, last))
    return list(zip(sources.tolist(), samples.tolist(), strict=True))


@given(counts=COUNTS, epoch=st.integers(0, 5), seed=st.integers(0, 1000), shuffle=st.booleans())
@settings(max_examples=50)
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
@settings(max_examples=30)
def test_with_weights_every_block_has_the_exact_shares(
    counts: list[int], weights: list[float], shuffle: bool, block: int
) -> None:
    used = tuple(weights[: len(counts)])
    sources, _ = WeightedOrder(tuple(counts), used, 7, shuffle).at(np.arange(block * BLOCK, (block + 1) * BLOCK))
    found = np.bincount(sources, minlength=len(counts))
    exact = BLOCK * np.array(used) / sum(used)
    assert (found >= 1).all()
    small = np.maximum(1 - exact, 0).sum()  # what sources with less than one slot get above their share
    assert (np.abs(found - exact) < 1 + small).all()


@given(counts=COUNTS, shuffle=st.booleans())
@settings(max_examples=20)
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
@settings(max_examples=40)
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


def test_a_trillion_samples_take_neither_memory_nor_work(python_calls: Callable[[Callable[[], Any]], int]) -> None:
    counts = (10**12, 3 * 10**11, 5)

    def draw_some() -> None:
        for order in (EpochOrder(counts, 1, True), WeightedOrder(counts, (0.5, 0.3, 0.2), 1, True)):
            for step in (0, 10**6, 10**9):
                sources, samples = order.at(np.arange(step * 512, (step + 1) * 512))
                assert (samples < np.array(counts)[sources]).all()

    tracemalloc.start()
    draw_some()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert python_calls(draw_some) < 200_000


REPEATS = st.decimals("0.01", "3.5", places=2)


@given(
    sources=st.lists(st.tuples(st.integers(1, 60), REPEATS), min_size=1, max_size=4),
    epoch=st.integers(0, 4),
    shuffle=st.booleans(),
    sequential=st.booleans(),
)
@settings(max_examples=100)
def test_an_epoch_has_every_sample_as_often_as_its_source_is_repeated(
    sources: list[tuple[int, Decimal]], epoch: int, shuffle: bool, sequential: bool
) -> None:
    counts = tuple(count for count, _ in sources)
    order = EpochOrder(counts, 5, shuffle, tuple(float(repeat) for _, repeat in sources), sequential)
    lengths = [math.ceil(count * repeat) for count, repeat in sources]
    assert order.epoch_samples == sum(lengths)
    drawn = draw(order, epoch * sum(lengths), (epoch + 1) * sum(lengths))
    for source, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        samples = [sample for owner, sample in drawn if owner == source]
        assert len(samples) == length
        seen = np.bincount(samples, minlength=count)
        assert set(seen.tolist()) <= {length // count, -(-length // count)}
        if not shuffle:
            assert samples == [index % count for index in range(length)]
    assert sorted(drawn) == sorted(draw(order, 0, sum(lengths)))  # the same samples in every epoch
    if sequential or not shuffle:
        owners = [owner for owner, _ in drawn]
        assert owners == sorted(owners)


def test_repeats_are_those_of_phyagi() -> None:
    order = EpochOrder((5, 3), 0, False, (1.5, 0.5))
    assert draw(order, 0, 10) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_a_repeat_is_the_number_that_is_written() -> None:
    assert 0.07 * 100 > 7
    assert EpochOrder((100, 10), 0, True, (0.07, 1.1)).lengths == (7, 11)


def test_repeating_once_is_not_repeating() -> None:
    places = Permutation(80, key(3, "order", 0))(np.arange(80)).tolist()
    expected = [(0, place) if place < 50 else (1, place - 50) for place in places]
    assert draw(EpochOrder((50, 30), 3, True), 0, 80) == expected
    assert draw(EpochOrder((50, 30), 3, True, (1.0, 1.0)), 0, 80) == expected


def test_sequential_sources_are_shuffled_within_themselves_and_anew_in_every_epoch() -> None:
    order = EpochOrder((100, 100), 3, True, sequential=True)
    epochs = [[sample for _, sample in draw(order, start, start + 100)] for start in (0, 100, 200, 300)]
    assert all(sorted(samples) == list(range(100)) for samples in epochs)
    assert len({tuple(samples) for samples in epochs}) == 4


@st.composite
def staged_orders(draw_from: st.DrawFn) -> WeightedOrder:
    """Draw orders of one to four stages with any starts, also equal ones."""
    counts = tuple(draw_from(st.lists(st.integers(1, 3000), min_size=2, max_size=4)))
    some = st.lists(st.sampled_from([0.0, 0.01, 1.0, 2.5]), min_size=len(counts), max_size=len(counts)).filter(any)
    starts = sorted(draw_from(st.lists(st.integers(1, 2 * BLOCK + 10), max_size=3)))
    later = tuple(MixtureStage(start, tuple(draw_from(some))) for start in starts)
    return WeightedOrder(counts, tuple(draw_from(some)), draw_from(st.integers(0, 99)), draw_from(st.booleans()), later)


@given(order=staged_orders())
@settings(max_examples=25)
def test_every_block_of_a_stage_has_its_exact_shares(order: WeightedOrder) -> None:
    last = 3 * BLOCK
    sources, _ = order.at(np.arange(last))
    ends = [stage.start for stage in order.later] + [last]
    for stage, end in zip(order.stages, ends, strict=True):
        drawn = [source for source, weight in enumerate(stage.weights) if weight]
        expected = np.zeros(len(order.counts), dtype=np.int64)
        expected[drawn] = apportion([stage.weights[source] for source in drawn], BLOCK)
        for start in range(stage.start, end, BLOCK):
            found = np.bincount(sources[start : min(start + BLOCK, end)], minlength=len(expected))
            assert (found <= expected).all()
            assert start + BLOCK > end or (found == expected).all()


@given(order=staged_orders())
@settings(max_examples=25)
def test_sources_go_through_their_epochs_across_the_borders_of_stages(order: WeightedOrder) -> None:
    sources, samples = order.at(np.arange(3 * BLOCK))
    for source, count in enumerate(order.counts):
        own = samples[sources == source]
        whole = own[: len(own) // count * count].reshape(-1, count)
        assert (np.sort(whole, axis=1) == np.arange(count)).all()
        rest = own[whole.size :]
        assert len(set(rest.tolist())) == len(rest)


@given(order=staged_orders(), position=st.integers(0, 2 * BLOCK), start=st.integers(0, BLOCK))
@settings(max_examples=40)
def test_no_sample_depends_on_the_stages_that_come_later(order: WeightedOrder, position: int, start: int) -> None:
    before = tuple(stage for stage in order.later if stage.start < position)
    other = replace(order, later=(*before, MixtureStage(position + start, (1.0,) * len(order.counts))))
    assert draw(order, 0, position) == draw(other, 0, position)
    assert draw(order, 0, position) == draw(replace(order, later=before), 0, position)


@given(order=staged_orders(), batch=st.integers(1, 300), step=st.integers(0, 60), world_size=st.integers(1, 9))
@settings(max_examples=40)
def test_staged_samples_do_not_depend_on_how_they_are_asked_for(
    order: WeightedOrder, batch: int, step: int, world_size: int
) -> None:
    first, fresh = step * batch, replace(order)
    whole = draw(order, first, first + batch)
    parts = [
        draw(fresh, first + rank * batch // world_size, first + (rank + 1) * batch // world_size)
        for rank in range(world_size)
    ]
    assert [sample for part in parts for sample in part] == whole
    backwards = order.at(np.arange(first + batch - 1, first - 1, -1))
    assert list(zip(*(array.tolist() for array in backwards), strict=True)) == whole[::-1]


def test_the_first_stage_is_the_order_without_stages() -> None:
    order = WeightedOrder((500, 70), (2.0, 1.0), 3, True)
    staged = replace(order, later=(MixtureStage(5001, (0.0, 1.0)),))
    assert draw(staged, 0, 5001) == draw(order, 0, 5001)
    assert {source for source, _ in draw(staged, 5001, 9000)} == {1}


def test_stages_of_a_trillion_samples_cost_nothing(python_calls: Callable[[Callable[[], Any]], int]) -> None:
    order = WeightedOrder(
        (10**12, 5), (1.0, 2.0), 1, True, (MixtureStage(10**12 + 1, (1.0, 0.0)), MixtureStage(10**13, (1.0, 1.0)))
    )

    def draw_some() -> None:
        for first in (0, 10**12, 10**13 - 100, 10**15):
            order.at(np.arange(first, first + 512))

    tracemalloc.start()
    draw_some()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert python_calls(draw_some) < 200_000


def sources(*labels: str, **keys: Any) -> list[dict[str, Any]]:
    return [{"kind": "text", "path": "there", "label": label, **keys} for label in labels]


def staged(make_config: MakeConfig, steps: dict[str, Any], *untils: float) -> RunConfig:
    """Batches of 10 samples of 8 tokens, in stages that draw from a and b in turn."""
    stages: list[dict[str, Any]] = [{"until": until, "weights": {"ab"[i % 2]: 1}} for i, until in enumerate(untils)]
    stages.append({"weights": {"a": 1, "b": 3}})
    config = make_config(*sources("a", "b"), batch=10, stages=stages)
    return RunConfig.model_validate(config.model_dump() | {"train": {"batch_size": 10, **steps}})


@pytest.mark.parametrize(
    ("steps", "untils", "ends"),
    [
        ({"steps": 100}, [0.07, 0.5], [7, 50]),  # 0.07 · 100 is more than 7 in floating point
        ({"steps": 3}, [0.1, 0.5], [1, 2]),
        ({"steps": 3}, [0.1, 0.2], [1, 1]),  # a stage without a step
        ({"tokens": 8001}, [0.5], [51]),
        ({"epochs": 2}, [0.25], [30]),  # of 2 · 600 samples
        ({"steps": 100}, [3, 70], [3, 70]),
        ({"steps": 10}, [20], [20]),  # after the end of a run that may become longer
    ],
)
def test_stages_end_at_steps_or_at_fractions_of_them_rounded_up(
    make_config: MakeConfig, steps: dict[str, Any], untils: list[float], ends: list[int]
) -> None:
    config = staged(make_config, steps, *untils)
    order = build_order(config, (400, 200))
    assert isinstance(order, WeightedOrder)
    assert [stage.start for stage in order.later] == [10 * end for end in ends]
    assert [fact[0] for fact in stage_facts(config, order)] == [0, *ends]
    assert len(stage_lines(config, order)) == len(ends) + 1


def test_stages_are_said_in_steps_counted_from_one(make_config: MakeConfig) -> None:
    config = staged(make_config, {"steps": 5000}, 0.8)
    assert stage_lines(config, build_order(config, (400, 200))) == [
        "from step 1 to 4,000: a 1",
        "from step 4,001 on: a 1, b 3",
    ]


def test_sources_of_one_label_share_its_weight_by_their_size(make_config: MakeConfig) -> None:
    stages = [{"until": 1, "weights": {"a": 3, "b": 1}}, {"weights": {"b": 2}}]
    order = build_order(make_config(*sources("a", "b", "a"), stages=stages), (100, 7, 300))
    assert isinstance(order, WeightedOrder)
    assert order.stages == (MixtureStage(0, (0.75, 1.0, 2.25)), MixtureStage(4, (0.0, 2.0, 0.0)))
    drawn = np.bincount(order.at(np.arange(4, 4 + 4096))[0], minlength=3)
    assert drawn.tolist() == [0, 4096, 0]


def test_the_run_file_says_how_sources_are_mixed(make_config: MakeConfig) -> None:
    counts = (10, 20)
    a, b = sources("a", "b")
    assert build_order(make_config(a, b), counts) == EpochOrder(counts, 1337, True, (1.0, 1.0))
    repeated = make_config(a, b | {"repeat": 1.5}, mixing="sequential", shuffle=False)
    assert build_order(repeated, counts) == EpochOrder(counts, 1337, False, (1.0, 1.5), True)
    weighted = make_config(a | {"weight": 2}, b | {"weight": 1})
    assert build_order(weighted, counts) == WeightedOrder(counts, (2.0, 1.0), 1337, True)
    assert stage_facts(weighted, build_order(weighted, counts)) == []
