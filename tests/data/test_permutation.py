from __future__ import annotations

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.data import permutation
from quintet.data.permutation import Permutation


def test_the_round_function_gives_the_published_numbers_of_splitmix64() -> None:
    """The first numbers of its generator from the seed 0, which adds a constant and mixes."""
    states = np.arange(1, 5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert permutation._mix(states).tolist() == expected


@pytest.mark.parametrize(
    ("size", "first"),
    [
        (6, [3, 0, 2, 5]),
        (1000, [772, 488, 692, 219]),
        ((1 << 16) - 1, [65064, 24547, 47066, 15986]),
        (1 << 16, [25258, 39687, 36873, 15041]),
        ((1 << 20) + 1, [1006194, 415123, 453900, 1042603]),
        (1 << 62, [2049381270372344031, 1139450385524391665, 1493934648815791002, 1632639301834281710]),
    ],
)
def test_an_order_that_a_run_began_with_is_the_one_with_which_it_goes_on(size: int, first: list[int]) -> None:
    """Each version has to draw the same samples, so these numbers never change."""
    assert Permutation(size, 5)(np.arange(4)).tolist() == first


def test_what_no_permutation_can_be_asked_for_is_a_mistake_of_the_caller() -> None:
    for size in (0, (1 << 62) + 1):
        with pytest.raises(AssertionError):
            Permutation(size, 1)
    for place in (-1, 10):
        with pytest.raises(AssertionError):
            Permutation(10, 1)(np.array([place]))


def assert_bijection(size: int, seed: int) -> None:
    np.testing.assert_array_equal(np.sort(Permutation(size, seed)(np.arange(size))), np.arange(size))


@pytest.mark.parametrize("seed", [0, 1337, 2**62])
def test_every_small_size_is_permuted(seed: int) -> None:
    for size in range(1, 130):
        assert_bijection(size, seed)


@given(size=st.integers(1, 1 << 18), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=30)
def test_any_size_is_permuted(size: int, seed: int) -> None:
    assert_bijection(size, seed)


@given(size=st.integers(1 << 40, 1 << 62), start=st.integers(0, 1 << 39), seed=st.integers(0, 100))
@settings(max_examples=30)
def test_values_of_huge_sizes_are_distinct_and_inside(size: int, start: int, seed: int) -> None:
    values = Permutation(size, seed)(np.arange(start, start + 1000))
    assert len(np.unique(values)) == 1000
    assert values.min() >= 0
    assert int(values.max()) < size


def test_one_value_is_the_same_alone_and_among_others() -> None:
    permutation = Permutation(1000, 5)
    together = permutation(np.arange(1000).reshape(10, 100))
    assert together.shape == (10, 100)
    assert permutation(np.array(345)) == together[3, 45]
    assert permutation(np.array([], dtype=np.int64)).shape == (0,)


@pytest.mark.slow
def test_all_permutations_of_few_values_are_equally_frequent_over_the_seeds() -> None:
    for size, draws in ((3, 1200), (4, 4800), (5, 6000)):
        values = np.arange(size)
        found = Counter(tuple(Permutation(size, seed)(values).tolist()) for seed in range(draws))
        expected = draws / math.factorial(size)
        freedom = math.factorial(size) - 1
        chi_squared = sum((count - expected) ** 2 / expected for count in found.values())
        assert len(found) == math.factorial(size)
        assert abs(chi_squared - freedom) < 4 * math.sqrt(2 * freedom)


def test_every_value_is_equally_frequent_at_every_place_over_the_seeds() -> None:
    size, draws = 12, 3000
    counts = np.zeros((size, size))
    for seed in range(draws):
        counts[np.arange(size), Permutation(size, seed)(np.arange(size))] += 1
    expected, freedom = draws / size, (size - 1) ** 2
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [4096, 100_003, (1 << 20) + 1])
def test_a_permutation_has_no_pattern_that_correlation_would_show(size: int) -> None:
    """Each coefficient of an ideal permutation has mean about 0 and standard deviation 1/sqrt(size)."""
    values, other = Permutation(size, 3)(np.arange(size)), Permutation(size, 4)(np.arange(size))
    bound = 4.5 / math.sqrt(size)
    assert abs(np.corrcoef(values, np.arange(size))[0, 1]) < bound
    assert abs(np.corrcoef(values, other)[0, 1]) < bound
    for lag in (1, 2, 64, 1024):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < bound * size / (size - lag)
    # Neighbouring values: each distance modulo the size is equally likely, so 1/16 of them fall in each sixteenth.
    sixteenths = np.bincount(np.diff(values) % size * 16 // size, minlength=16)
    assert ((sixteenths - size / 16) ** 2 / (size / 16)).sum() < 15 + 5 * math.sqrt(2 * 15)


def test_the_mean_number_of_fixed_points_is_one() -> None:
    points = np.arange(500)
    fixed = [int((Permutation(500, seed)(points) == points).sum()) for seed in range(1500)]
    assert abs(np.mean(fixed) - 1) < 4 / math.sqrt(1500)
    assert abs(np.var(fixed) - 1) < 0.25


def test_memory_does_not_grow_with_the_size() -> None:
    def peak(size: int) -> int:
        tracemalloc.start()
        Permutation(size, 1)(np.arange(1000))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(1 << 62) < peak(1 << 12) + 200_000


def chi_squared(left: np.ndarray, right: np.ndarray, kinds: int) -> tuple[float, int]:
    """Pearson's statistic of the pairs of ``left`` and ``right``, each below ``kinds``, and its degrees of freedom."""
    counts = np.bincount(left * kinds + right, minlength=kinds * kinds).reshape(kinds, kinds)
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum()), (kinds - 1) ** 2


def deviations(size: int, seeds: range) -> dict[str, float]:
    """Return how far the mixing of permutations of ``size`` is from chance, in standard deviations of chi-square."""
    kinds, found = 16 if size > 1 << 14 else 4, dict[str, list[tuple[float, int]]]()
    places = np.arange(size)
    for seed in seeds:
        values = Permutation(size, seed)(places)
        high, low, near = values * kinds // size, values % kinds, places // 16 % kinds
        pairs = {
            "high parts of neighbours": (high[:-1], high[1:]),
            "low bits of neighbours": (low[:-1], low[1:]),
            "low bits of a place and its value": (places % kinds, low),
            "a place and its value": (places * kinds // size, high),
            "middle bits of a place and low bits of its value": (near, low),
            "low bits two places on": (low[:-2], low[2:]),
            "values under two seeds": (high, Permutation(size, seed + 1000)(places) * kinds // size),
        }
        for name, (left, right) in pairs.items():
            found.setdefault(name, []).append(chi_squared(left, right, kinds))
    totals = {name: np.sum(several, axis=0) for name, several in found.items()}
    return {name: float((found - freedom) / math.sqrt(2 * freedom)) for name, (found, freedom) in totals.items()}


@pytest.mark.parametrize("size", [512, 1000, 40_009, (1 << 16) - 1, (1 << 16) + 1, 1 << 17, 200_003])
def test_neighbours_and_low_bits_are_mixed_as_by_chance(size: int) -> None:
    for name, deviation in deviations(size, range(24 if size < 1 << 14 else 4)).items():
        assert abs(deviation) < 4.5, (name, deviation)


def test_the_measure_of_mixing_sees_too_few_rounds_and_a_weak_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1000, 1 << 17):
        with monkeypatch.context() as patch:
            patch.setattr(permutation, "_ROUNDS", 2)
            patch.setattr(permutation, "_SMALL_ROUNDS", 2)
            assert max(map(abs, deviations(size, range(4)).values())) > 10
        with monkeypatch.context() as patch:
            patch.setattr(permutation, "_mix", lambda values: values)
            assert max(map(abs, deviations(size, range(4)).values())) > 10
