"""Metrics of generated notes against true ones: shares of matching notes, and distances between distributions.

docs/guide/piano.md has the formulas. If both sides have no notes, each F1 is 1 and each distance 0. If one side has
none, each F1 is 0 and each distance between distributions is NaN.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quintet.libraries import require
from quintet.piano.notes import Notes

ONSET_TOLERANCE = 0.05
"""Seconds by which two onsets may differ."""
OFFSET_SHARE = 0.2
"""Share of a true note's length by which the ends may differ, if that is more than 50 ms."""
VELOCITY_TOLERANCE = 12
"""The largest difference of two velocities, a tenth of the scale."""


@dataclass(frozen=True)
class MatchScore:
    """Precision, recall and F1 of a matching, from 0 to 1."""

    precision: float
    recall: float
    f1: float


def compare(generated: Notes, target: Notes) -> dict[str, float]:
    """Return all metrics by name; a higher F1 and a lower distance are better."""
    onset = note_score(generated, target)
    return {
        "note_f1": onset.f1,
        "note_precision": onset.precision,
        "note_recall": onset.recall,
        "note_offset_f1": note_score(generated, target, offset=True).f1,
        "note_velocity_f1": note_score(generated, target, velocity=True).f1,
        "note_offset_velocity_f1": note_score(generated, target, offset=True, velocity=True).f1,
        "sounding_f1": sounding_f1(generated, target),
        **{name: distance(generated, target) for name, distance in DISTANCES.items()},
    }


def mean(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over several comparisons, ignoring NaN; NaN if all are NaN."""
    columns: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.items():
            columns.setdefault(name, []).append(value)
    kept = {name: [value for value in values if not np.isnan(value)] for name, values in columns.items()}
    return {name: float(np.mean(values)) if values else float("nan") for name, values in kept.items()}


def note_score(generated: Notes, target: Notes, *, offset: bool = False, velocity: bool = False) -> MatchScore:
    """Return the scores of the largest matching of generated to true notes, each matched at most once.

    Two notes may match if they have the same pitch and onsets at most 50 ms apart; with ``offset`` also ends at most
    50 ms or a fifth of the true length apart (as in mir_eval.transcription), with ``velocity`` also velocities at most
    12 apart. Times are rounded to 0.1 ms, as in mir_eval, so that exactly 50 ms on a grid match. Raises UserError
    without scipy.
    """
    if len(generated) == 0 or len(target) == 0:
        score = float(len(generated) == len(target))
        return MatchScore(score, score, score)
    matched = _largest_matching(*_candidates(generated, target, offset, velocity), len(target), len(generated))
    return MatchScore(matched / len(generated), matched / len(target), 2 * matched / (len(generated) + len(target)))


def _candidates(generated: Notes, target: Notes, offset: bool, velocity: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs that may match: indices into target and generated, int64 [pairs] each."""
    rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for pitch in np.intersect1d(generated.pitch, target.pitch):
        true, made = np.flatnonzero(target.pitch == pitch), np.flatnonzero(generated.pitch == pitch)
        reach = ONSET_TOLERANCE + 1e-3  # with a margin of 1 ms; the exact comparison follows below
        low = np.searchsorted(generated.start[made], target.start[true] - reach)
        count = np.searchsorted(generated.start[made], target.start[true] + reach, side="right") - low
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        rows.append(np.repeat(true, count))
        columns.append(made[np.repeat(low, count) + within])
    row, column = np.concatenate(rows), np.concatenate(columns)
    fits = _apart(target.start[row], generated.start[column]) <= ONSET_TOLERANCE
    if offset:
        reach = np.maximum(OFFSET_SHARE * (target.end - target.start), ONSET_TOLERANCE)[row]
        fits &= _apart(target.end[row], generated.end[column]) <= reach
    if velocity:
        fits &= np.abs(target.velocity[row] - generated.velocity[column]) <= VELOCITY_TOLERANCE
    return row[fits], column[fits]


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.around(np.abs(one - other), 4)


def _largest_matching(row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> int:
    sparse: Any = require("scipy.sparse", "piano", "a metric of piano notes")
    csgraph: Any = require("scipy.sparse.csgraph", "piano", "a metric of piano notes")
    graph = sparse.csr_array((np.ones(len(row), np.int8), (row, column)), shape=(rows, columns))
    return int((csgraph.maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def sounding_f1(generated: Notes, target: Notes) -> float:
    """Return 2 · both / (generated + target), of the seconds for which a pitch sounds in both and in each of the
    two."""
    if len(generated) == 0 and len(target) == 0:
        return 1.0
    both = one = other = 0.0
    for pitch in np.union1d(generated.pitch, target.pitch):
        mine, true = generated[generated.pitch == pitch], target[target.pitch == pitch]
        lengths = _covered(mine.start, mine.end), _covered(true.start, true.end)
        union = _covered(np.concatenate([mine.start, true.start]), np.concatenate([mine.end, true.end]))
        both, one, other = both + sum(lengths) - union, one + lengths[0], other + lengths[1]
    return float(np.clip(2 * both / (one + other), 0, 1))


def _covered(start: np.ndarray, end: np.ndarray) -> float:
    """Return the seconds inside at least one interval; ``start`` and ``end`` are float64 [intervals]."""
    order = np.argsort(start)
    start, end = start[order], end[order]
    before = np.concatenate([[-np.inf], np.maximum.accumulate(end)[:-1]]) if len(end) else end
    return float(np.maximum(end - np.maximum(start, before), 0).sum())


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Return ∫ |F − G| of the two distribution functions, in the unit of the values: scipy.stats.wasserstein_distance.

    ``one`` and ``other`` are [values] of any dtype and of different lengths. 0 if both are empty, NaN if one is.

    >>> wasserstein(np.array([0, 1]), np.array([2, 3, 3, 2]))
    2.0
    """
    if len(one) == 0 or len(other) == 0:
        return 0.0 if len(one) == len(other) else float("nan")
    one, other = np.sort(one), np.sort(other)
    positions = np.sort(np.concatenate([one, other]))
    share = np.searchsorted(one, positions[:-1], side="right") / len(one)
    against = np.searchsorted(other, positions[:-1], side="right") / len(other)
    return float((np.abs(share - against) * np.diff(positions)).sum())


def circular_wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Return the least work that turns one distribution over a circle into another, in steps of the circle.

    Both are shares, float64 [positions], with the sum 1. It is the distance on a line after the median of F − G is
    subtracted from F − G (Werman, Peleg and Rosenfeld, A distance metric for multidimensional histograms, 1985).
    """
    difference = np.cumsum(one - other)
    return float(np.abs(difference - np.median(difference)).sum())


def _classes(notes: Notes) -> np.ndarray:
    return np.bincount(notes.pitch % 12, minlength=12) / len(notes)


def _of_classes(measure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Notes, Notes], float]:
    def distance(generated: Notes, target: Notes) -> float:
        if len(generated) == 0 or len(target) == 0:
            return 0.0 if len(generated) == len(target) else float("nan")
        return measure(_classes(generated), _classes(target))

    return distance


def _of_values(values: Callable[[Notes], np.ndarray]) -> Callable[[Notes, Notes], float]:
    return lambda generated, target: wasserstein(values(generated), values(target))


def _of_number(number: Callable[[Notes], float]) -> Callable[[Notes, Notes], float]:
    return lambda generated, target: abs(number(generated) - number(target))


def pitch_range(notes: Notes) -> float:
    """Return the semitones from the lowest note to the highest; 0 without notes."""
    return float(np.ptp(notes.pitch)) if len(notes) else 0.0


def density(notes: Notes) -> float:
    """Return the notes per second, from the first start to the last end; 0 without notes."""
    return len(notes) / (notes.seconds - float(notes.start[0])) if len(notes) else 0.0


DISTANCES: dict[str, Callable[[Notes, Notes], float]] = {
    "pitch_class": _of_classes(lambda one, other: float(np.abs(one - other).sum() / 2)),
    "pitch_class_circle": _of_classes(circular_wasserstein),
    "pitch": _of_values(lambda notes: notes.pitch),
    "pitch_range": _of_number(pitch_range),
    "density": _of_number(density),
    "velocity": _of_values(lambda notes: notes.velocity),
    "onset_interval": _of_values(lambda notes: np.diff(notes.start)),
    "duration": _of_values(lambda notes: notes.end - notes.start),
}
"""Distances by name: functions of generated and true notes, symmetric, 0 for the same notes."""
