"""Documents of the training that are equal to one that is validated on, found by the hashes in the stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quintet.data.split import HeldOut

_CHUNK = 1 << 20
# Slots of the table for each hash: one document in so many that is not in the set has to be looked up in it.
_SPARSE = 32


class Hashed(Protocol):
    """The part of a store that the search needs: a hash of each document, equal for equal documents."""

    @property
    def document_count(self) -> int: ...
    def hashes(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class HashSet:
    """A set of 64-bit hashes: sorted, uint64 [hashes], and a table by their lowest bits that most others miss."""

    values: np.ndarray
    table: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray) -> HashSet:
        """The set of ``hashes``, uint64 [hashes], in about 40 to 72 bytes each."""
        values = np.unique(np.asarray(hashes, dtype=np.uint64))
        table = np.zeros(1 << max(1, _SPARSE * values.size - 1).bit_length(), dtype=bool)
        table[values & np.uint64(table.size - 1)] = True
        return cls(values, table)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Indices in ``hashes``, uint64 [n], of those that are in the set, ascending."""
        found = np.flatnonzero(self.table[hashes & np.uint64(self.table.size - 1)])
        return found[np.isin(hashes[found], self.values)]


def hashes_of(store: Hashed, documents: np.ndarray) -> np.ndarray:
    """Hashes of ``documents``, uint64 [documents], in the order of the documents."""
    documents = np.sort(documents)
    chunks = [np.empty(0, dtype=np.uint64)]
    for start, stop in _chunks(store):
        inside = documents[np.searchsorted(documents, start) : np.searchsorted(documents, stop)]
        if inside.size:
            chunks.append(store.hashes(start, stop)[inside - start])
    return np.concatenate(chunks)


def shared_documents(training: Hashed, validated: HashSet, except_for: np.ndarray) -> np.ndarray:
    """Documents of ``training`` whose hash is among ``validated``, without those in ``except_for``.

    Both are int64 [documents], the result ascending. The hashes are read a million at a time, so that memory grows with
    the sets and not with the store.
    """
    if not validated.values.size:
        return np.empty(0, dtype=np.int64)
    chunks: Iterable[np.ndarray] = (
        start + validated.find(training.hashes(start, stop)) for start, stop in _chunks(training)
    )
    found = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
    return np.setdiff1d(found, except_for, assume_unique=True)


def copies(stores: Sequence[Hashed], held: Sequence[HeldOut]) -> list[np.ndarray]:
    """Documents of each store that are copies of one that is held out of any of ``stores``.

    One int64 [documents] a store, ascending. A copy of a document of which only the tail is held out is among them; the
    document itself is not, unless it is a copy of one that is held out whole.
    """
    cut = [np.array([] if one.cut is None else [one.cut], dtype=np.int64) for one in held]
    whole = [np.setdiff1d(one.documents, part) for one, part in zip(held, cut, strict=True)]
    of_whole = HashSet.of(_joined_hashes(stores, whole))
    of_all = HashSet.of(np.concatenate([of_whole.values, _joined_hashes(stores, cut)]))
    found: list[np.ndarray] = []
    for store, one, part in zip(stores, held, cut, strict=True):
        heads = part[of_whole.find(hashes_of(store, part))]
        found.append(np.union1d(shared_documents(store, of_all, one.documents), heads))
    return found


def _joined_hashes(stores: Sequence[Hashed], documents: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([hashes_of(store, some) for store, some in zip(stores, documents, strict=True)])


def _chunks(store: Hashed) -> Iterator[tuple[int, int]]:
    for start in range(0, store.document_count, _CHUNK):
        yield start, min(start + _CHUNK, store.document_count)
