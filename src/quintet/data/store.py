"""Token stores: the tokens of a source on disk, memory-mapped, with document boundaries and a manifest.

A store is a folder:

    manifest.json                facts about the store: see `Manifest`
    tokenizer/                   the tokenizer that wrote it
    shard-000000.tokens.npy      ids of whole documents, each with its end: uint16 or uint32 [tokens]
    shard-000000.ends.npy        end of each document in the shard, after its end id: int64 [documents]
    shard-000000.hashes.npy      hash of the ids of each document: uint64 [documents]
    shard-000000.learnt.npy      loss mask, if some tokens have no loss: bool [tokens]
    shard-000000.minhash.npy     signatures, if similar documents are dropped: uint32 [documents × numbers]
    shard-000000.json            counts and digest of the shard, written last
    dropped.npy                  documents that are not to be used, if there are any: int64, ascending

The arrays are in NumPy's own format (NEP 1), little-endian: any reader of .npy files reads them.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from quintet.data.manifest import MANIFEST, Dropped, Manifest, Shard, read_manifest
from quintet.data.verify import (
    HEADER,
    ArrayCheck,
    Check,
    ProgressCallback,
    beyond_vocabulary,
    find_damage,
    npy_header,
)
from quintet.errors import UserError
from quintet.files import unfinished_name
from quintet.tokenize.base import digest

_PER_DOCUMENT = {"ends": np.dtype("<i8"), "hashes": np.dtype("<u8")}
_LEARNT = np.dtype("bool")
_SIGNATURE = np.dtype("<u4")
DROPPED = "dropped.npy"
_LOOK = 1 << 16  # tokens whose loss masks are read at once
_AGAIN = "delete the folder and run prepare again"
_OPEN_MAPS = 128  # a map keeps its file open, and the lowest limit of systems in use is 256 open files


class TokenStore:
    """The tokens of a store as one long array, and its documents, numbered from 0; read from disk on demand."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._token_starts = _starts([shard.tokens for shard in manifest.shards])
        self._document_starts = _starts([shard.documents for shard in manifest.shards])
        self._map = lru_cache(maxsize=_OPEN_MAPS)(self._open_map)
        # No id can be beyond the vocabulary if the vocabulary has all ids of the dtype.
        self._all_known = manifest.vocab_size > np.iinfo(manifest.dtype).max

    @classmethod
    def open(
        cls, folder: Path, tokenizer_fingerprint: str | None = None, progress: ProgressCallback | None = None
    ) -> TokenStore:
        """Open the store in ``folder``, and compare files that are new or changed with their checksums; ``progress`` is
        called if that takes long. Without such files the time grows only with the number of shards.

        Raises UserError when there is no store, when another tokenizer or another format of Quintet wrote it, when a
        file is missing or of another size than the manifest says, and when a checksum differs.
        """
        manifest = read_manifest(folder)
        if tokenizer_fingerprint is not None and manifest.tokenizer != tokenizer_fingerprint:
            raise UserError(
                f"{folder / MANIFEST}: written with another tokenizer (fingerprint {manifest.tokenizer}, the run's is "
                f"{tokenizer_fingerprint}); set `tokenizer` to the one it was written with, or prepare the store again"
            )
        with os.scandir(folder) as entries:  # faster than asking for each of very many files
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        problems = [
            problem for shard in manifest.shards for problem in size_problems(folder, shard, manifest.dtype, sizes)
        ]
        if manifest.unused.documents:
            problems += _size_problem(folder / DROPPED, manifest.unused.documents * _PER_DOCUMENT["ends"].itemsize)
        problems = problems or find_damage(folder, _checks(folder, manifest), progress)
        if problems:
            raise UserError(*(f"{problem}: {_AGAIN}" for problem in problems))
        return cls(folder, manifest)

    @property
    def token_count(self) -> int:
        """Tokens, the end of each document included."""
        return int(self._token_starts[-1])

    @property
    def document_count(self) -> int:
        """Documents."""
        return int(self._document_starts[-1])

    @property
    def masked(self) -> bool:
        """True if some tokens have no loss."""
        return any(shard.masked for shard in self.manifest.shards)

    def learnt_everywhere(self) -> TokenStore:
        """Return the store with a loss on all tokens; if some had none, its fingerprint is another."""
        if not self.masked:
            return self
        shards = tuple(
            replace(shard, masked=False, digest=digest(shard.digest, "learnt everywhere")) if shard.masked else shard
            for shard in self.manifest.shards
        )
        return TokenStore(self.folder, replace(self.manifest, shards=shards))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on the tokens and their documents, not on the source."""
        unused = [self.manifest.unused.digest] if self.manifest.unused.documents else []
        return digest(self.manifest.tokenizer, *(shard.digest for shard in self.manifest.shards), *unused)

    @cached_property
    def dropped(self) -> np.ndarray:
        """Documents that are not to be used because they repeat an earlier one: int64 [documents], ascending."""
        count = self.manifest.unused.documents
        if not count:
            return np.empty(0, dtype=np.int64)
        return _mapped(self.folder / DROPPED, _PER_DOCUMENT["ends"], count)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Return tokens ``start`` to ``stop``, [stop - start] of the store's dtype, read-only.

        Raises UserError for an id that the tokenizer does not have, in a file that changed after it was opened.
        """
        assert 0 <= start <= stop <= self.token_count, (start, stop, self.token_count)
        shard = int(np.searchsorted(self._token_starts, start, side="right")) - 1
        if start < stop <= self._token_starts[shard + 1]:
            offset = int(self._token_starts[shard])
            return self._part(shard, slice(start - offset, stop - offset))
        # Copied part by part: views of very many shards would keep as many files open.
        joined = np.empty(stop - start, dtype=self.manifest.dtype)
        for shard, inside, place in _parts(self._token_starts, start, stop):
            joined[place] = self._part(shard, inside)
        return joined

    def loss_mask(self, start: int, stop: int) -> np.ndarray | None:
        """Return True for those of the tokens ``start`` to ``stop`` that have a loss, bool [stop - start]; None if all
        tokens of the store have one."""
        if not self.masked:
            return None
        mask = np.ones(stop - start, dtype=bool)
        for shard, inside, place in _parts(self._token_starts, start, stop):
            if self.manifest.shards[shard].masked:
                mask[place] = self._map(shard, "learnt")[inside]
        return mask

    def hashes(self, start: int, stop: int) -> np.ndarray:
        """Return the hash of documents ``start`` to ``stop``, uint64 [stop - start]: equal for equal documents."""
        return self._of_documents("hashes", np.empty(stop - start, dtype=np.uint64), start, stop)

    def signatures(self, start: int, stop: int) -> np.ndarray:
        """Return the MinHash signature of documents ``start`` to ``stop``, uint32 [stop - start, numbers]; a store has
        signatures if similar documents were looked for."""
        numbers = self.manifest.shards[0].permutations if self.manifest.shards else 0
        return self._of_documents("minhash", np.empty((stop - start, numbers), dtype=np.uint32), start, stop)

    def _of_documents(self, what: str, values: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Fill ``values``, [stop - start, ...], from the array ``what`` for documents ``start`` to ``stop``."""
        assert 0 <= start <= stop <= self.document_count, (start, stop, self.document_count)
        for shard, inside, place in _parts(self._document_starts, start, stop):
            values[place] = self._map(shard, what).reshape(-1, *values.shape[1:])[inside]
        return values

    def tokens_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the token at each of ``positions``, int64 [positions]: [positions] of the store's dtype."""
        ids = np.empty(len(positions), dtype=self.manifest.dtype)
        shards = np.searchsorted(self._token_starts, positions, side="right") - 1
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            ids[chosen] = self._map(shard, "tokens")[positions[chosen] - self._token_starts[shard]]
        if not self._all_known and beyond_vocabulary(ids, 0, self.manifest.vocab_size):
            for position in positions.tolist():  # one of these calls raises the error, with its place
                self.tokens(position, position + 1)
        return ids

    def document_bounds(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first token of each of ``documents``, and the one after its last: int64 [documents] each."""
        documents = np.asarray(documents, dtype=np.int64)
        assert not documents.size or (documents.min() >= 0 and documents.max() < self.document_count)
        starts, stops = np.empty_like(documents), np.empty_like(documents)
        shards = np.searchsorted(self._document_starts, documents, side="right") - 1
        order = np.argsort(shards, kind="stable")
        used, begins = np.unique(shards[order], return_index=True)
        for shard, indices in zip(used.tolist(), np.split(order, begins)[1:], strict=True):
            ends = self._map(shard, "ends")
            local = documents[indices] - self._document_starts[shard]
            starts[indices] = np.where(local > 0, ends[np.maximum(local - 1, 0)], 0) + self._token_starts[shard]
            stops[indices] = ends[local] + self._token_starts[shard]
        return starts, stops

    def document_ends(self, start: int, stop: int) -> np.ndarray:
        """Return the end of documents ``start`` to ``stop``, after their end ids: int64 [stop - start]."""
        return self.document_bounds(np.arange(start, stop))[1]

    def end_with(self, documents: np.ndarray, end_id: int) -> np.ndarray:
        """Return True for those of ``documents`` whose last token is ``end_id``, the tokenizer's: bool [documents].

        Tokens are read only if the store has documents with another end, such as some conversations.
        """
        if not any(shard.without_end for shard in self.manifest.shards):
            return np.ones(documents.size, dtype=bool)
        lasts = self.document_bounds(documents)[1] - 1
        return self.tokens_at(lasts) == end_id

    def documents(self, start: int, stop: int) -> np.ndarray:
        """Return the document of each of the tokens ``start`` to ``stop``: int64 [stop - start]."""
        if start == stop:
            return np.empty(0, dtype=np.int64)
        first, last = self.document_at(start), self.document_at(stop - 1)
        sizes = np.diff(self.document_ends(first, last), prepend=start, append=stop)
        return np.repeat(np.arange(first, last + 1), sizes)

    def prompts(self, start: int, stop: int) -> np.ndarray | None:
        """Return True for those of the tokens ``start`` to ``stop`` that come before the first with a loss in their
        document, bool [stop - start]; None if all tokens of the store have a loss."""
        loss_mask = self.loss_mask(start, stop)
        if loss_mask is None or start == stop:
            return None if loss_mask is None else loss_mask
        documents = self.documents(start, stop)
        counts = np.cumsum(loss_mask)
        begins = np.flatnonzero(np.diff(documents, prepend=documents[0] - 1))
        before = np.concatenate([[0], counts])[begins]
        prompts = counts == np.repeat(before, np.diff(begins, append=documents.size))
        first = int(self.document_bounds(documents[:1])[0][0])
        return prompts & ((documents != documents[0]) | (not self._has_loss(first, start)))

    def _has_loss(self, start: int, stop: int) -> bool:
        """Return True if one of the tokens ``start`` to ``stop`` has a loss."""
        for begin in range(start, stop, _LOOK):
            mask = self.loss_mask(begin, min(begin + _LOOK, stop))
            if mask is None or mask.any():
                return True
        return False

    def document_at(self, token: int) -> int:
        """Return the document of the token at this position."""
        assert 0 <= token < self.token_count, token
        shard = int(np.searchsorted(self._token_starts, token, side="right")) - 1
        local = np.searchsorted(self._map(shard, "ends"), token - int(self._token_starts[shard]), side="right")
        return int(self._document_starts[shard] + local)

    def _part(self, shard: int, inside: slice) -> np.ndarray:
        """Return the ids ``inside`` a shard, [ids] of the store's dtype. Raises UserError if one is beyond the
        vocabulary."""
        ids = self._map(shard, "tokens")[inside]
        if not self._all_known and (problem := beyond_vocabulary(ids, inside.start, self.manifest.vocab_size)):
            file = array_file(self.folder, self.manifest.shards[shard].name, "tokens")
            raise UserError(f"{file}: {problem}: {_AGAIN}")
        return ids

    def _open_map(self, shard: int, what: str) -> np.ndarray:
        facts = self.manifest.shards[shard]
        dtype, count = _arrays(facts, self.manifest.dtype)[what]
        return _mapped(array_file(self.folder, facts.name, what), dtype, count)


def _parts(starts: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield the parts of items ``start`` to ``stop`` that are in one shard each: the shard, the items inside it, and
    their place in the result. Shard i has the items ``starts[i]`` to ``starts[i + 1]``, int64 [shards + 1]."""
    at, shard = start, int(np.searchsorted(starts, start, side="right")) - 1
    while at < stop:
        offset, end = int(starts[shard]), min(stop, int(starts[shard + 1]))
        yield shard, slice(at - offset, end - offset), slice(at - start, end - start)
        at, shard = end, shard + 1


def array_file(folder: Path, shard: str, what: str) -> Path:
    """Return the file of an array of a shard: ``what`` is tokens, ends, hashes, learnt or minhash."""
    return folder / f"{shard}.{what}.npy"


def write_dropped(folder: Path, dropped: np.ndarray) -> None:
    """Write the documents that are not to be used, int64 [documents], ascending."""
    unfinished = unfinished_name(folder / DROPPED)
    writer = ArrayWriter(unfinished, _PER_DOCUMENT["ends"])
    writer.append(dropped)
    writer.close()
    os.replace(unfinished, folder / DROPPED)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 that holds all ids."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class ArrayWriter:
    """Writes a one-dimensional array of ``dtype``, little-endian, piece by piece. ``checksum`` is the CRC-32 of the
    values so far."""

    def __init__(self, file: Path, dtype: np.dtype) -> None:
        self._dtype, self._count, self.checksum = dtype.newbyteorder("<"), 0, 0
        self._out = file.open("wb")
        self._out.write(bytes(HEADER))

    def append(self, array: np.ndarray) -> None:
        """Append the values of ``array``, [...] of a dtype that converts to the file's."""
        values = np.ascontiguousarray(array, dtype=self._dtype)
        self._out.write(values.data)
        self.checksum = zlib.crc32(values.data, self.checksum)
        self._count += array.size

    def close(self) -> None:
        """Write the header, and wait until all is on the disk."""
        self._out.seek(0)
        self._out.write(npy_header(self._dtype, self._count))
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()

    def abandon(self) -> None:
        """Close the file without a header."""
        self._out.close()


def size_problems(folder: Path, shard: Shard, dtype: str, sizes: Mapping[str, int] | None = None) -> list[str]:
    """Return the problems with the sizes of the files of ``shard``; ``sizes`` are those in the folder, if known."""
    problems: list[str] = []
    for what, (item, count) in _arrays(shard, dtype).items():
        name, size = f"{shard.name}.{what}.npy", count * item.itemsize
        if sizes is None or sizes.get(name) != HEADER + size:
            problems += _size_problem(folder / name, size)
    return problems


def _size_problem(file: Path, size: int) -> list[str]:
    """Return the problem with ``file``, an array of ``size`` bytes, in at most one line."""
    expected = HEADER + size
    if not file.is_file():
        return [f"{file}: is missing, the manifest says {expected} bytes"]
    actual = file.stat().st_size
    if actual == expected:
        return []
    fault = "is truncated" if actual < expected else "is too long"
    return [f"{file}: {fault}: {actual} bytes, the manifest says {expected}"]


def _checks(folder: Path, manifest: Manifest) -> dict[str, Check]:
    """Return the check of the content of each file of a store, by its name."""
    checks: dict[str, Check] = {}
    for shard in manifest.shards:
        arrays = _arrays(shard, manifest.dtype)
        if not shard.checksums:
            check = _DigestCheck(shard, manifest.dtype, manifest.vocab_size, folder)
            checks |= {f"{shard.name}.{what}.npy": check for what in arrays if what in ("tokens", "ends", "learnt")}
        for what, checksum in shard.checksums.items():
            item, count = arrays[what]
            size = manifest.vocab_size if what == "tokens" else None
            checks[f"{shard.name}.{what}.npy"] = ArrayCheck(item.str, count, checksum, size)
    if manifest.unused.documents:
        checks[DROPPED] = _DroppedCheck(manifest.unused)
    return checks


@dataclass(frozen=True)
class _DigestCheck:
    """The check of a ``shard`` of an earlier version, which has one digest of all arrays but the hashes."""

    shard: Shard
    dtype: str
    vocab_size: int
    folder: Path = field(repr=False)

    def problem(self, file: Path) -> str | None:
        return self._problem

    @cached_property
    def _problem(self) -> str | None:
        """The problem with the shard, computed once for all of its files."""
        arrays = _arrays(self.shard, self.dtype)
        names = ("tokens", "ends", "learnt") if self.shard.masked else ("tokens", "ends")
        values = {what: _mapped(array_file(self.folder, self.shard.name, what), *arrays[what]) for what in names}
        state = hashlib.blake2b(values["tokens"].data, digest_size=16)
        state.update(values["ends"].data)
        if self.shard.masked:
            state.update(hashlib.blake2b(values["learnt"].data, digest_size=16).digest())
        if state.hexdigest() != self.shard.digest:
            return "its bytes are not those that were written (another digest)"
        return beyond_vocabulary(values["tokens"], 0, self.vocab_size)


@dataclass(frozen=True)
class _DroppedCheck:
    unused: Dropped

    def problem(self, file: Path) -> str | None:
        values = _mapped(file, _PER_DOCUMENT["ends"], self.unused.documents)
        return None if digest(values.tobytes()) == self.unused.digest else "its bytes are not those that were written"


def _mapped(file: Path, dtype: np.dtype, count: int) -> np.ndarray:
    return np.asarray(np.memmap(file, dtype=dtype, mode="r", offset=HEADER, shape=(count,)))


def _arrays(shard: Shard, dtype: str) -> dict[str, tuple[np.dtype, int]]:
    """Return the dtype and the length of each array of ``shard``, by name."""
    arrays = {"tokens": (np.dtype(dtype), shard.tokens)}
    arrays |= {what: (item, shard.documents) for what, item in _PER_DOCUMENT.items()}
    if shard.permutations:
        arrays["minhash"] = (_SIGNATURE, shard.documents * shard.permutations)
    return arrays | ({"learnt": (_LEARNT, shard.tokens)} if shard.masked else {})


def _starts(counts: Sequence[int]) -> np.ndarray:
    """Return the sum of the ``counts`` before each, and of all: int64 [counts + 1]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
