"""The split of a store into documents that are held out for validation and the stream that is trained on.

Documents are held out whole, in a keyed random order, until the quota of tokens is met; only the tail of the document
that would exceed the quota is held out. So a corpus of one document gives its last tokens, as in nanoGPT's split of
Shakespeare, and a corpus of many gives a random selection. No held-out token is trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from quintet.data.permutation import Permutation

_LEAST_LOOKUP = 64
_NONE = np.empty(0, np.int64)


class Documents(Protocol):
    """The part of a store that the split and the streams need."""

    @property
    def token_count(self) -> int: ...
    @property
    def document_count(self) -> int: ...
    def document_bounds(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def tokens(self, start: int, stop: int) -> np.ndarray: ...
    def loss_mask(self, start: int, stop: int) -> np.ndarray | None: ...
    def documents(self, start: int, stop: int) -> np.ndarray: ...
    def prompts(self, start: int, stop: int) -> np.ndarray | None: ...


@dataclass(frozen=True)
class TokenRanges:
    """Sorted, disjoint, non-empty ranges of positions: int64 [intervals] each."""

    starts: np.ndarray
    stops: np.ndarray

    @property
    def size(self) -> int:
        """Positions in all."""
        return int((self.stops - self.starts).sum())

    def complement(self, size: int) -> TokenRanges:
        """The positions of 0 … ``size`` - 1 that are in none of the ranges."""
        starts, stops = np.append(0, self.stops), np.append(self.starts, size)
        kept = starts < stops
        return TokenRanges(starts[kept], stops[kept])


@dataclass(frozen=True)
class TokenStream:
    """Some intervals of a store read as one sequence. Memory: two numbers an interval."""

    store: Documents
    ranges: TokenRanges

    @property
    def length(self) -> int:
        """Tokens in all."""
        return int(self._ends[-1]) if self._ends.size else 0

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.ranges.stops - self.ranges.starts, dtype=np.int64)

    def read(self, position: int, length: int) -> np.ndarray:
        """``length`` tokens from ``position`` on, [length] of the store's dtype, gathered across holes."""
        parts = [self.store.tokens(start, stop) for start, stop in self._ranges(position, length)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint16), *parts])

    def loss_mask(self, position: int, length: int) -> np.ndarray | None:
        """True where one of these has a loss, bool [length]; None if all of the store have."""
        parts = [self.store.loss_mask(start, stop) for start, stop in self._ranges(position, length)]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if known else None

    def documents(self, position: int, length: int) -> np.ndarray:
        """The number of the document of each of these, from 0 in the order in which they come: int64 [length]."""
        parts = [self.store.documents(start, stop) for start, stop in self._ranges(position, length)]
        found = np.concatenate([np.empty(0, np.int64), *parts])
        return np.cumsum(np.diff(found, prepend=found[:1]) != 0)

    def prompts(self, position: int, length: int) -> np.ndarray | None:
        """True where one of these stands in its document before the first that has a loss, bool [length]; None if all
        of the store have one."""
        parts = [self.store.prompts(start, stop) for start, stop in self._ranges(position, length)]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if known else None

    def _ranges(self, position: int, length: int) -> list[tuple[int, int]]:
        """The ranges of the store with ``length`` tokens from ``position`` on."""
        assert 0 <= position <= position + length <= self.length, (position, length, self.length)
        index = int(np.searchsorted(self._ends, position, side="right"))
        ranges: list[tuple[int, int]] = []
        while length:
            stop = int(self.ranges.stops[index])
            start = stop - (int(self._ends[index]) - position)
            taken = min(length, stop - start)
            ranges.append((start, start + taken))
            position, length, index = position + taken, length - taken, index + 1
        return ranges


@dataclass(frozen=True)
class HeldOut:
    """``documents`` of a store, int64 [documents], and the ``ranges`` of its tokens that they are. Of the document
    ``cut``, if there is one, only the tail is held out."""

    documents: np.ndarray
    cut: int | None
    ranges: TokenRanges


def hold_out(store: Documents, held_out: float, seed: int, left_out: np.ndarray = _NONE) -> HeldOut:
    """The part of ``store`` that is validated on: a fraction of its tokens below 1, a number of tokens from 1 on (at
    most all).

    ``seed`` keys the order of the documents. Those in ``left_out``, int64 [documents], ascending, are passed over, and
    their tokens do not count. Memory grows with the number of documents held out and left out only.
    """
    there = _outside(store, left_out).size
    quota = min(round(held_out * there if held_out < 1 else held_out), there)
    return _held_out(store, quota, seed, left_out)


def training_stream(store: Documents, held_out: HeldOut, left_out: np.ndarray) -> TokenStream:
    """The rest of ``store``, without what is held out and the documents ``left_out``, int64 [documents]."""
    starts, stops = store.document_bounds(left_out)  # of the one that is cut, with the tail that is held out already
    apart = _joined(np.append(held_out.ranges.starts, starts), np.append(held_out.ranges.stops, stops))
    return TokenStream(store, apart.complement(store.token_count))


def split(store: Documents, held_out: float, seed: int) -> tuple[TokenStream, TokenStream]:
    """The training and the validation stream of ``store``: disjoint, and together all of it. See ``hold_out``."""
    held = hold_out(store, held_out, seed)
    return training_stream(store, held, np.empty(0, np.int64)), TokenStream(store, held.ranges)


def whole(store: Documents, left_out: np.ndarray = _NONE) -> TokenStream:
    """All of ``store`` but the documents ``left_out``, int64 [documents], as one stream."""
    return TokenStream(store, _outside(store, left_out))


def _outside(store: Documents, left_out: np.ndarray) -> TokenRanges:
    return _joined(*store.document_bounds(left_out)).complement(store.token_count)


def _held_out(store: Documents, quota: int, seed: int, left_out: np.ndarray) -> HeldOut:
    """Documents in random order until there are ``quota`` tokens."""
    empty = np.empty(0, np.int64)
    documents, starts, stops = [empty], [empty], [empty]
    taken = first = 0
    cut = None
    while taken < quota:
        # As many documents as the quota needs if they are of mean length, and a bit more: mostly one look is enough.
        share = (quota - taken) / store.token_count
        last = min(first + math.ceil(1.1 * share * store.document_count) + _LEAST_LOOKUP, store.document_count)
        order = Permutation(store.document_count, seed)(np.arange(first, last))
        order, first = order[~np.isin(order, left_out)], last
        if not order.size:
            continue
        begins, ends = store.document_bounds(order)
        totals = taken + np.cumsum(ends - begins)
        count = min(int(np.searchsorted(totals, quota)) + 1, len(order))
        order, begins, ends = order[:count], begins[:count], ends[:count]
        taken = int(totals[count - 1])
        if taken > quota:
            begins[-1] += taken - quota
            cut = int(order[-1])
        documents.append(order)
        starts.append(begins)
        stops.append(ends)
    return HeldOut(np.concatenate(documents), cut, _joined(np.concatenate(starts), np.concatenate(stops)))


def _joined(starts: np.ndarray, stops: np.ndarray) -> TokenRanges:
    """Disjoint intervals, int64 [intervals] each, sorted, with neighbours that touch, or end together, made one."""
    order = np.argsort(starts)
    starts, stops = starts[order], stops[order]
    apart = starts[1:] > stops[:-1]
    return TokenRanges(starts[np.append(True, apart)[: starts.size]], stops[np.append(apart, True)[: stops.size]])
