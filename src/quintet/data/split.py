"""The split of a store into documents that are held out for validation and the stream that is trained on.

Documents are held out whole, in a keyed random order, until the quota of tokens is met; of the document that would
exceed the quota only the tail is held out. So a corpus of one document gives its last tokens, as in nanoGPT's split of
Shakespeare, and a corpus of many gives a random selection. No held-out token is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quintet.data.permutation import Permutation
from quintet.data.store import TokenStore

_LEAST_LOOKUP = 64
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class TokenRanges:
    """Sorted, disjoint, non-empty ranges of positions: int64 [ranges] each."""

    starts: np.ndarray
    stops: np.ndarray

    @property
    def size(self) -> int:
        """Positions in all."""
        return int((self.stops - self.starts).sum())

    def complement(self, size: int) -> TokenRanges:
        """Return the positions of 0 … ``size`` - 1 that are in none of the ranges."""
        starts, stops = np.append(0, self.stops), np.append(self.starts, size)
        kept = starts < stops
        return TokenRanges(starts[kept], stops[kept])


@dataclass(frozen=True)
class TokenStream:
    """Ranges of a store, read as one sequence of tokens."""

    store: TokenStore
    ranges: TokenRanges

    @property
    def length(self) -> int:
        """Tokens in all."""
        return int(self._ends[-1]) if self._ends.size else 0

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.ranges.stops - self.ranges.starts, dtype=np.int64)

    def read(self, position: int, length: int) -> np.ndarray:
        """Return ``length`` tokens from ``position`` on, [length] of the store's dtype."""
        ids = self._gather(self.store.tokens, position, length)
        return np.empty(0, np.uint16) if ids is None else ids

    def loss_mask(self, position: int, length: int) -> np.ndarray | None:
        """Return True for tokens with a loss, bool [length]; None if all tokens of the store have one."""
        return self._gather(self.store.loss_mask, position, length)

    def documents(self, position: int, length: int) -> np.ndarray:
        """Return the document of each token, numbered from 0 in the order in which they come: int64 [length]."""
        numbers = self._gather(self.store.documents, position, length)
        return _NONE if numbers is None else np.cumsum(np.diff(numbers, prepend=numbers[:1]) != 0)

    def prompts(self, position: int, length: int) -> np.ndarray | None:
        """Return True for tokens before the first with a loss in their document, bool [length]; None if all tokens of
        the store have a loss."""
        return self._gather(self.store.prompts, position, length)

    def _gather(self, read: Callable[[int, int], np.ndarray | None], position: int, length: int) -> np.ndarray | None:
        """Return what ``read`` gives for the ranges of the store, joined: [length], or None if it gives nothing."""
        parts = [part for start, stop in self._ranges(position, length) if (part := read(start, stop)) is not None]
        if len(parts) <= 1:
            return parts[0] if parts else None
        return np.concatenate(parts)

    def _ranges(self, position: int, length: int) -> list[tuple[int, int]]:
        """Return the ranges of the store with ``length`` tokens from ``position`` on."""
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
    """The held-out ``documents`` of a store, int64 [documents], and the ``ranges`` of their tokens. Of the document
    ``cut``, if there is one, only the tail is held out."""

    documents: np.ndarray
    cut: int | None
    ranges: TokenRanges


def hold_out(store: TokenStore, held_out: float, seed: int, excluded: np.ndarray = _NONE) -> HeldOut:
    """Return the part of ``store`` to validate on: a fraction of its tokens if ``held_out`` is below 1, else a number
    of tokens, at most all.

    ``seed`` keys the order of the documents. The documents ``excluded``, int64 [documents], ascending, are skipped, and
    their tokens do not count. Memory grows only with the number of documents held out and excluded.
    """
    available = _outside(store, excluded).size
    quota = min(round(held_out * available if held_out < 1 else held_out), available)
    return _held_out(store, quota, seed, excluded)


def training_stream(store: TokenStore, held_out: HeldOut, excluded: np.ndarray) -> TokenStream:
    """Return ``store`` without what is held out and without the documents ``excluded``, int64 [documents]."""
    starts, stops = store.document_bounds(excluded)  # these may include the tail that is held out
    apart = _joined(np.append(held_out.ranges.starts, starts), np.append(held_out.ranges.stops, stops))
    return TokenStream(store, apart.complement(store.token_count))


def split(store: TokenStore, held_out: float, seed: int) -> tuple[TokenStream, TokenStream]:
    """Return the training and the validation stream of ``store``, disjoint and together all of it. See `hold_out`."""
    held = hold_out(store, held_out, seed)
    return training_stream(store, held, _NONE), TokenStream(store, held.ranges)


def whole(store: TokenStore, excluded: np.ndarray = _NONE) -> TokenStream:
    """Return all of ``store`` but the documents ``excluded``, int64 [documents], as one stream."""
    return TokenStream(store, _outside(store, excluded))


def _outside(store: TokenStore, excluded: np.ndarray) -> TokenRanges:
    return _joined(*store.document_bounds(excluded)).complement(store.token_count)


def _held_out(store: TokenStore, quota: int, seed: int, excluded: np.ndarray) -> HeldOut:
    """Return documents in random order until they have ``quota`` tokens."""
    documents, starts, stops = [_NONE], [_NONE], [_NONE]
    taken = first = 0
    cut = None
    while taken < quota:
        # As many documents as the quota needs at their mean length, and a few more: mostly one lookup is enough.
        share = (quota - taken) / store.token_count
        last = min(first + math.ceil(1.1 * share * store.document_count) + _LEAST_LOOKUP, store.document_count)
        order = Permutation(store.document_count, seed)(np.arange(first, last))
        order, first = order[~np.isin(order, excluded)], last
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
    """Return disjoint ranges, int64 [ranges] each, sorted; ranges that touch, or end together, become one."""
    order = np.argsort(starts)
    starts, stops = starts[order], stops[order]
    apart = starts[1:] > stops[:-1]
    return TokenRanges(starts[np.append(True, apart)[: starts.size]], stops[np.append(apart, True)[: stops.size]])
