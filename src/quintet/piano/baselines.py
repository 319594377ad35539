"""Baselines without a model, to compare a model's figures with: copies of the prompt, and counts of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from quintet.piano.notes import HIGHEST, LOWEST, Notes, notes
from quintet.piano.tasks import Task

_OCTAVE = 12
_LINES = {
    "top_line_masking": _OCTAVE,
    "top_line_prediction": _OCTAVE,
    "bottom_line_masking": -_OCTAVE,
    "low_line_prediction": -_OCTAVE,
}
_SIDES = {
    "high_notes_masking": _OCTAVE,
    "above_median_prediction": _OCTAVE,
    "above_low_quartile_prediction": _OCTAVE,
    "above_high_quartile_prediction": _OCTAVE,
    "low_notes_masking": -_OCTAVE,
    "below_median_prediction": -_OCTAVE,
    "below_low_quartile_prediction": -_OCTAVE,
    "below_high_quartile_prediction": -_OCTAVE,
}
_SPREAD = {"loud_prediction": _OCTAVE, "very_loud_prediction": _OCTAVE}


def copied(task: Task, prompt: Notes, count: int) -> Notes:
    """Return an answer of copies of the prompt's notes; ``count`` is the number of missing notes.

    - Tasks that replace: the prompt.
    - Lines: the line that the task finds in the prompt, an octave higher (the bottom line: lower).
    - Tasks whose target is above (below) the prompt: the ``count`` highest (lowest) notes, an octave higher (lower).
    - Strides: each block again, halfway to the next one.
    - All others: ``count`` notes spread evenly over the prompt, an octave lower (loud notes: higher).

    Copies outside the range of a piano are dropped. Most tasks do not tell a model the count, so the baseline has an
    advantage. The rules are the best of those that were tried on recorded performances.
    """
    if task.replaces or len(prompt) == 0:
        return prompt
    if task.kind == "stride_notes_masking":
        return _halfway(prompt, task.value)
    if task.kind in _LINES:
        _, line = task.split(prompt, np.random.default_rng(0))  # the generator is not used
        return _on_piano(line.transposed(_LINES[task.kind]))
    if task.kind in _SIDES:
        semitones = _SIDES[task.kind]
        nearest = np.argsort(-np.sign(semitones) * prompt.pitch, kind="stable")[:count]
        return _on_piano(prompt[np.sort(nearest)].transposed(semitones))
    spread = np.unique(np.linspace(0, len(prompt) - 1, count).astype(np.int64))
    return _on_piano(prompt[spread].transposed(_SPREAD.get(task.kind, -_OCTAVE)))


def _halfway(prompt: Notes, length: int) -> Notes:
    """Move each block of ``length`` notes by half the time to the next block, and the last block like the one
    before."""
    later = np.diff(prompt.start[::length]) / 2
    later = np.append(later, later[-1] if len(later) else 0)
    moved = np.repeat(later, length)[: len(prompt)]
    return notes(prompt.pitch, prompt.velocity, prompt.start + moved, prompt.end + moved)


def _on_piano(copy: Notes) -> Notes:
    return copy[(copy.pitch >= LOWEST) & (copy.pitch <= HIGHEST)]


@dataclass(frozen=True)
class Unigram:
    """The frequencies of tokens: p(b) = (count of b + 1) / (count of all + vocabulary).

    ``counts`` is int64 [vocabulary].
    """

    counts: np.ndarray

    def nats(self, ids: np.ndarray) -> np.ndarray:
        """Return -ln p of each token except the first, which is not predicted: float64 [tokens - 1]."""
        share = (self.counts + 1) / (self.counts.sum() + len(self.counts))
        return -np.log(share[np.asarray(ids)[1:]])


@dataclass(frozen=True)
class Bigram:
    """The frequencies of tokens after another: p(b after a) = (count of a b + 1) / (count of a + vocabulary).

    ``pairs`` are the occurring pairs as a · vocabulary + b, int64 [pairs] ascending, and ``counts`` their numbers,
    int64 [pairs]. ``before`` counts how often each token comes before another, int64 [vocabulary].
    """

    pairs: np.ndarray
    counts: np.ndarray
    before: np.ndarray

    def nats(self, ids: np.ndarray) -> np.ndarray:
        """Return -ln p of each token except the first, given the one before it: float64 [tokens - 1]."""
        ids = np.asarray(ids, dtype=np.int64)
        pair = ids[:-1] * len(self.before) + ids[1:]
        counts = np.zeros(len(pair), dtype=np.int64)
        if len(self.pairs):
            at = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
            counts = np.where(self.pairs[at] == pair, self.counts[at], 0)
        return -np.log((counts + 1) / (self.before[ids[:-1]] + len(self.before)))


def unigram(sequences: Iterable[np.ndarray], vocabulary: int) -> Unigram:
    """Count the tokens in ``sequences`` of ids, integers [tokens], including the first of each."""
    counts = np.zeros(vocabulary, dtype=np.int64)
    for ids in sequences:
        counts += np.bincount(np.asarray(ids, dtype=np.int64), minlength=vocabulary)
    return Unigram(counts)


def bigram(sequences: Iterable[np.ndarray], vocabulary: int) -> Bigram:
    """Count the pairs of neighbours in each of ``sequences`` of ids, integers [tokens]."""
    before = np.zeros(vocabulary, dtype=np.int64)
    pair_ids = [np.empty(0, dtype=np.int64)]
    for ids in sequences:
        first = np.asarray(ids, dtype=np.int64)
        before += np.bincount(first[:-1], minlength=vocabulary)
        pair_ids.append(first[:-1] * vocabulary + first[1:])
    pairs, counts = np.unique(np.concatenate(pair_ids), return_counts=True)
    return Bigram(pairs, counts, before)


def nats_per_token(
    model: Unigram | Bigram, sequences: Iterable[np.ndarray], counted: Iterable[np.ndarray] | None = None
) -> float:
    """Return the mean of -ln p over all tokens except the first of each sequence, integers [tokens]; NaN without
    tokens.

    ``counted``, bool [tokens - 1] for each sequence, marks the predicted tokens that count, such as those after
    `<GENAI>`.
    """
    total, tokens = 0.0, 0
    masks = iter(counted) if counted is not None else None
    for ids in sequences:
        nats = model.nats(ids)
        if masks is not None:
            nats = nats[next(masks)]
        total, tokens = total + float(nats.sum()), tokens + len(nats)
    return total / tokens if tokens else float("nan")
