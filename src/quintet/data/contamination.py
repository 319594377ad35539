"""Training documents that are equal to a validation document, found by the hashes in the stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quintet.data.split import HeldOut
from quintet.data.store import TokenStore

_CHUNK = 1 << 20
_SPARSE = 32  # slots of the table per hash: 1 of 32 hashes that are not in the set is looked up in it


@dataclass(frozen=True)
class HashSet:
    """A set of 64-bit hashes: sorted, uint64 [hashes], and a table by their lowest bits, which most other hashes
    miss."""

    values: np.ndarray
    table: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray) -> HashSet:
        """Return the set of ``hashes``, uint64 [hashes]; it takes about 40 to 72 bytes per hash."""
        values = np.unique(np.asarray(hashes, dtype=np.uint64))
        table = np.zeros(1 << max(1, _SPARSE * values.size - 1).bit_length(), dtype=bool)
        table[values & np.uint64(table.size - 1)] = True
        return cls(values, table)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Return the indices in ``hashes``, uint64 [n], of those that are in the set: int64, ascending."""
        candidates = np.flatnonzero(self.table[hashes & np.uint64(self.table.size - 1)])
        return candidates[np.isin(hashes[candidates], self.values)]


def hashes_of(store: TokenStore, documents: np.ndarray) -> np.ndarray:
    """Return the hashes of ``documents``, int64 [documents], in ascending order of the documents: uint64
    [documents]."""
    documents = np.sort(documents)
    chunks = [np.empty(0, dtype=np.uint64)]
    for start, stop in _chunks(store):
        inside = documents[np.searchsorted(documents, start) : np.searchsorted(documents, stop)]
        if inside.size:
            chunks.append(store.hashes(start, stop)[inside - start])
    return np.concatenate(chunks)


def shared_documents(training: TokenStore, validated: HashSet, except_for: np.ndarray) -> np.ndarray:
    """Return the documents of ``training`` whose hash is in ``validated``, without ``except_for``, int64 [documents]:
    int64 [documents], ascending.

    A million hashes are read at a time, so that memory grows with the sets and not with the store.
    """
    if not validated.values.size:
        return np.empty(0, dtype=np.int64)
    chunks: Iterable[np.ndarray] = (
        start + validated.find(training.hashes(start, stop)) for start, stop in _chunks(training)
    )
    shared = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
    return np.setdiff1d(shared, except_for, assume_unique=True)


def copies(stores: Sequence[TokenStore], held_out: Sequence[HeldOut]) -> list[np.ndarray]:
    """Return the documents of each store that are copies of a document held out from any of ``stores``: int64
    [documents] per store, ascending.

    They include copies of a document of which only the tail is held out. They do not include that document itself,
    unless it is a copy of one that is held out whole.
    """
    cut = [np.array([] if part.cut is None else [part.cut], dtype=np.int64) for part in held_out]
    whole = [np.setdiff1d(part.documents, document) for part, document in zip(held_out, cut, strict=True)]
    of_whole = HashSet.of(_joined_hashes(stores, whole))
    of_all = HashSet.of(np.concatenate([of_whole.values, _joined_hashes(stores, cut)]))
    copied: list[np.ndarray] = []
    for store, part, document in zip(stores, held_out, cut, strict=True):
        heads = document[of_whole.find(hashes_of(store, document))]
        copied.append(np.union1d(shared_documents(store, of_all, part.documents), heads))
    return copied


def _joined_hashes(stores: Sequence[TokenStore], documents: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([hashes_of(store, some) for store, some in zip(stores, documents, strict=True)])


def _chunks(store: TokenStore) -> Iterator[tuple[int, int]]:
    for start in range(0, store.document_count, _CHUNK):
        yield start, min(start + _CHUNK, store.document_count)
