"""What is held out for validation, and the two streams of tokens that come of it.

Documents are taken whole, in a keyed random order, until the quota of tokens is met; the document that would exceed it
gives only its tail. So a corpus of one document gives its last tokens, as nanoGPT's split of Shakespeare does, and a
corpus of many gives a random sample of documents, none of which is also trained on but for the first part of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from quintet.data.permutation import Permutation

_LEAST_LOOKUP = 64


class Documents(Protocol):
    """What the split and the streams need of a store."""

    @property
    def token_count(self) -> int: ...
    @property
    def document_count(self) -> int: ...
    def document_bounds(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def tokens(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Intervals:
    """Sorted, disjoint, non-empty ranges of positions: int64 [intervals] each."""

    starts: np.ndarray
    stops: np.ndarray

    @property
    def size(self) -> int:
        """Positions in all."""
        return int((self.stops - self.starts).sum())

    def complement(self, size: int) -> Intervals:
        """What of 0 … ``size`` - 1 is in none of the intervals."""
        starts, stops = np.append(0, self.stops), np.append(self.starts, size)
        kept = starts < stops
        return Intervals(starts[kept], stops[kept])


@dataclass(frozen=True)
class TokenStream:
    """Some intervals of a store read as one sequence. Memory: two numbers an interval."""

    store: Documents
    intervals: Intervals

    @property
    def length(self) -> int:
        """Tokens in all."""
        return int(self._ends[-1]) if self._ends.size else 0

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.intervals.stops - self.intervals.starts, dtype=np.int64)

    def read(self, position: int, length: int) -> np.ndarray:
        """``length`` tokens from ``position`` on, [length] of the store's dtype, gathered across holes."""
        assert 0 <= position <= position + length <= self.length, (position, length, self.length)
        index = int(np.searchsorted(self._ends, position, side="right"))
        parts = []
        while length:
            stop = int(self.intervals.stops[index])
            start = stop - (int(self._ends[index]) - position)
            taken = min(length, stop - start)
            parts.append(self.store.tokens(start, start + taken))
            position, length, index = position + taken, length - taken, index + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint16), *parts])


def split(store: Documents, held_out: float, seed: int) -> tuple[TokenStream, TokenStream]:
    """The training and the validation stream of ``store``: disjoint, and together all of it.

    ``held_out`` is a fraction of the tokens below 1, a number of tokens from 1 on (at most all), and ``seed`` keys the
    order of the documents. Memory grows with the number of held-out documents only.
    """
    quota = min(round(held_out * store.token_count if held_out < 1 else held_out), store.token_count)
    intervals = _held_out(store, quota, seed)
    return TokenStream(store, intervals.complement(store.token_count)), TokenStream(store, intervals)


def whole(store: Documents) -> TokenStream:
    """All of ``store`` as one stream."""
    return TokenStream(store, Intervals(np.empty(0, np.int64), np.empty(0, np.int64)).complement(store.token_count))


def _held_out(store: Documents, quota: int, seed: int) -> Intervals:
    """The intervals that make up ``quota`` tokens of documents in random order."""
    starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    taken = first = 0
    while taken < quota:
        # As many documents as the quota needs if they are of mean length, and a bit more: mostly one look is enough.
        share = (quota - taken) / store.token_count
        last = min(first + math.ceil(1.1 * share * store.document_count) + _LEAST_LOOKUP, store.document_count)
        order = Permutation(store.document_count, seed)(np.arange(first, last))
        begins, ends = store.document_bounds(order)
        totals = taken + np.cumsum(ends - begins)
        count = min(int(np.searchsorted(totals, quota)) + 1, len(order))
        begins, ends = begins[:count], ends[:count]
        taken, first = int(totals[count - 1]), last
        if taken > quota:
            begins[-1] += taken - quota
        starts.append(begins)
        stops.append(ends)
    return _joined(np.concatenate(starts), np.concatenate(stops))


def _joined(starts: np.ndarray, stops: np.ndarray) -> Intervals:
    """Disjoint intervals, sorted, with neighbours that touch made one."""
    order = np.argsort(starts)
    starts, stops = starts[order], stops[order]
    apart = starts[1:] > stops[:-1]
    return Intervals(starts[np.append(True, apart)[: starts.size]], stops[np.append(apart, True)[: stops.size]])
