"""The confidence interval of the difference between two models, measured on the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_BLOCK = 1 << 22  # numbers that are drawn at once


@dataclass(frozen=True)
class ConfidenceInterval:
    """The difference of two means and its confidence interval from ``low`` to ``high``. ``agreeing`` is the part of the
    resamples in which the difference has the sign that it has in the samples."""

    difference: float
    low: float
    high: float
    agreeing: float
    samples: int

    @property
    def certain(self) -> bool:
        """True if the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, weights: np.ndarray, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> ConfidenceInterval:
    """The interval of Σa / Σw - Σb / Σw, where sample i has the losses a_i and b_i over w_i tokens or bytes.

    ``a``, ``b`` and ``weights`` are [samples] of any dtype, the weights positive. The samples are drawn with
    replacement ``resamples`` times, the same ones for both models (Koehn 2004, Statistical Significance Tests for
    Machine Translation Evaluation), and the interval goes from the (1 - level) / 2 quantile of the differences to the
    (1 + level) / 2 one: the percentile interval (Efron and Tibshirani 1993, chapter 13). A pure function of its
    arguments.
    """
    assert len(a) == len(b) == len(weights) > 0
    assert weights.min() > 0
    gaps, weights = np.asarray(a, np.float64) - np.asarray(b, np.float64), np.asarray(weights, np.float64)
    random, count = np.random.default_rng(seed), len(gaps)
    found = []
    for start in range(0, resamples, max(1, _BLOCK // count)):
        rows = min(resamples - start, max(1, _BLOCK // count))
        drawn = random.integers(count, size=(rows, count))
        found.append(gaps[drawn].sum(1) / weights[drawn].sum(1))
    differences = np.concatenate(found)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    whole = float(gaps.sum() / weights.sum())
    agreeing = float((np.sign(differences) == np.sign(whole)).mean())
    return ConfidenceInterval(whole, float(low), float(high), agreeing, count)
