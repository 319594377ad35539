"""Documents of a store that an earlier one of it makes superfluous: by their hashes, or by MinHash signatures.

A signature has as many numbers as there are permutations of the words' hashes: two documents agree in as large a share
of them as their runs of words agree (Broder 1997). The library `datasketch` makes them and looks them up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from quintet.config.cleaning import CleaningConfig, ExactDeduplication, MinhashDeduplication
from quintet.libraries import check_installed

_SCHEME = "affine32"  # of datasketch: 32 bits a number; the signatures in a store are only comparable within one scheme
_NOTHING = np.uint32(0xFFFFFFFF)  # what datasketch has in the signature of no words

_CHUNK = 1 << 20


class Stored(Protocol):
    """What the search needs of a store."""

    @property
    def document_count(self) -> int: ...
    def hashes(self, start: int, stop: int) -> np.ndarray: ...
    def signatures(self, start: int, stop: int) -> np.ndarray: ...


def check_library(cleaning: CleaningConfig) -> None:
    """Raise UserError when ``cleaning`` needs a library that is not there."""
    if isinstance(cleaning.deduplicate, MinhashDeduplication):
        check_installed("datasketch", extra="dedup", what="data.cleaning.deduplicate: minhash")


def signer(cleaning: CleaningConfig) -> Callable[[str], np.ndarray] | None:
    """What makes the signature of a text, uint32 [permutations]; None where ``cleaning`` asks for none."""
    how = cleaning.deduplicate
    if not isinstance(how, MinhashDeduplication):
        return None
    from datasketch import MinHash

    blank = MinHash(num_perm=how.permutations, scheme=_SCHEME)

    def sign(text: str) -> np.ndarray:
        signature = blank.copy()
        for part in _parts(shingles(text, how.ngram)):
            signature.update_batch(part)
        return signature.hashvalues

    return sign


def shingles(text: str, ngram: int) -> Iterator[bytes]:
    """Each run of ``ngram`` words of ``text``, or all its words if there are fewer; in small letters."""
    words = text.casefold().encode("utf-8", "surrogatepass").split()
    if words:
        yield from (b" ".join(words[start : start + ngram]) for start in range(max(1, len(words) - ngram + 1)))


def find_duplicates(store: Stored, cleaning: CleaningConfig) -> tuple[np.ndarray, Counter[str]]:
    """Documents of ``store`` that ``cleaning`` leaves out, int64, ascending, and how many by the reason.

    Exact: about 40 bytes of memory a document. MinHash: about two kilobytes.
    """
    match cleaning.deduplicate:
        case ExactDeduplication():
            found, reason = _repeated(store), "duplicate"
        case MinhashDeduplication(threshold=threshold, permutations=permutations):
            found, reason = _similar(store, threshold, permutations), "near_duplicate"
        case _:
            return np.empty(0, dtype=np.int64), Counter()
    return found, Counter({reason: found.size} if found.size else {})


def _repeated(store: Stored) -> np.ndarray:
    """Documents whose hash an earlier one has."""
    hashes = store.hashes(0, store.document_count)
    first = np.unique(hashes, return_index=True)[1]
    later = np.ones(hashes.size, dtype=bool)
    later[first] = False
    return np.flatnonzero(later)


def _similar(store: Stored, threshold: float, permutations: int) -> np.ndarray:
    """Documents that are similar to an earlier one that stays."""
    from datasketch import MinHash, MinHashLSH

    # The index proposes and the signatures decide, so it is to miss little rather than to propose little: with weights
    # of one half it finds 40% of the pairs that are just as similar as 0.8, with these 87%. Above 0.9 it has no bands.
    index = MinHashLSH(threshold=min(threshold, 0.9), num_perm=permutations, weights=(0.1, 0.9))
    found: list[int] = []
    step = max(1, _CHUNK // permutations)
    for start in range(0, store.document_count, step):
        signatures = store.signatures(start, min(start + step, store.document_count))
        for document, values in enumerate(signatures, start):
            if (values == _NOTHING).all():
                continue
            signature = MinHash(hashvalues=values, scheme=_SCHEME)
            if _agrees(store, values, index.query(signature), threshold):
                found.append(document)
            else:
                index.insert(document, signature, check_duplication=False)
    return np.array(found, dtype=np.int64)


def _agrees(store: Stored, values: np.ndarray, candidates: Iterable[Any], threshold: float) -> bool:
    """Whether one of ``candidates`` is as similar as ``threshold``: the index also finds some that are less so."""
    return any((store.signatures(one, one + 1)[0] == values).mean() >= threshold for one in candidates)


def _parts(values: Iterator[bytes], size: int = 1 << 14) -> Iterator[list[bytes]]:
    """``values`` in lists: datasketch makes a table of permutations × values of each."""
    part: list[bytes] = []
    for value in values:
        part.append(value)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
