"""The paired bootstrap against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quintet.report.paired import paired_bootstrap


def test_with_equal_weights_the_interval_is_that_of_the_normal_approximation() -> None:
    draw = np.random.default_rng(1)
    common = draw.normal(3, 1, 400)  # what makes the samples hard for both: it must not widen the interval
    a, b = common + draw.normal(0.05, 0.2, 400), common
    found = paired_bootstrap(a, b, np.ones(400), resamples=20_000)
    gap, half = (a - b).mean(), 1.959964 * (a - b).std() / math.sqrt(400)
    assert found.difference == pytest.approx(gap, abs=1e-12)
    assert found.low == pytest.approx(gap - half, abs=0.05 * half)
    assert found.high == pytest.approx(gap + half, abs=0.05 * half)
    unpaired = 1.96 * math.sqrt(a.var() / 400 + b.var() / 400)
    assert found.high - found.low < unpaired


def test_unequal_weights_give_the_interval_of_a_ratio() -> None:
    """The delta method: the variance of Σg / Σw is that of (g - r w) / mean(w), over n."""
    draw = np.random.default_rng(2)
    weights = draw.integers(20, 400, 600).astype(float)
    gaps = 0.1 * weights + draw.normal(0, 1, 600) * np.sqrt(weights)
    found = paired_bootstrap(gaps, np.zeros(600), weights, resamples=20_000, level=0.9)
    ratio = gaps.sum() / weights.sum()
    half = 1.644854 * np.std(gaps - ratio * weights) / weights.mean() / math.sqrt(600)
    assert found.difference == pytest.approx(ratio)
    assert (found.low, found.high) == pytest.approx((ratio - half, ratio + half), abs=0.06 * half)


@settings(max_examples=60)
@given(arrays(float, st.integers(2, 40), elements=st.floats(-10, 10)), st.integers(0, 5))
def test_the_difference_lies_inside_and_turns_round_with_the_models(a: np.ndarray, seed: int) -> None:
    b, weights = np.zeros_like(a), np.ones_like(a)
    one = paired_bootstrap(a, b, weights, resamples=2000, seed=seed)
    other = paired_bootstrap(b, a, weights, resamples=2000, seed=seed)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert one == paired_bootstrap(a, b, weights, resamples=2000, seed=seed)
    assert a.min() - 1e-9 <= one.low <= one.high <= a.max() + 1e-9


def test_a_difference_that_is_always_the_same_is_certain_and_none_is_not() -> None:
    a = np.arange(1.0, 9.0)
    found = paired_bootstrap(a + 0.5, a, np.ones(8))
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    assert found.certain
    assert found.agreeing == 1.0
    assert not paired_bootstrap(a, a, np.ones(8)).certain


@pytest.mark.slow
def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    """400 experiments with 200 samples each: the 95% interval covers in 95% of them, within three standard errors, and
    less than 1.5% below for the percentile interval's bias at this size."""
    draw, true, covered = np.random.default_rng(5), 0.03, 0
    for trial in range(400):
        weights = draw.integers(10, 60, 200).astype(float)
        gaps = weights * (true + draw.standard_gamma(2, 200) * 0.1 - 0.2)
        one = paired_bootstrap(gaps, np.zeros(200), weights, resamples=1000, seed=trial)
        covered += one.low <= true <= one.high
    error = math.sqrt(0.95 * 0.05 / 400)
    assert 0.95 - 3 * error - 0.015 <= covered / 400 <= 0.95 + 3 * error
