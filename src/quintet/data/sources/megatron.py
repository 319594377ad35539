"""Indexed datasets of Megatron-LM: NAME.bin holds ids, NAME.idx the positions of sequences and documents.

The index (`megatron/core/datasets/indexed_dataset.py`, version 1), little-endian: "MMIDIDX" and two zero bytes, the
version (8 bytes), the type of the ids (1 byte), the numbers of sequences and of document bounds (8 bytes each). Then
come the lengths of the sequences in ids (int32), their offsets in NAME.bin in bytes (int64), and the first sequence of
each document (int64), followed by the number of sequences.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from quintet.config.names import local_path
from quintet.config.sources import MegatronSource
from quintet.data.sources.base import Document, Reader, Report, SourceIndex, TokenIds, WorkUnit
from quintet.data.sources.files import OTHERS, File, PassedOver, described, find_files, is_pattern, missing_paths
from quintet.data.sources.reading import ByteRange, open_file, read
from quintet.data.sources.token_files import SLICE
from quintet.errors import UserError
from quintet.tokenize.base import Tokenizer

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<QBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True)
class Index:
    """The header of an index: the type of the ids, and the numbers of sequences and documents."""

    path: str
    dtype: str
    sequences: int
    documents: int

    def lengths(self, start: int, stop: int) -> np.ndarray:
        """Return the number of ids in each of the sequences ``start`` to ``stop``, int32 [stop - start]."""
        return self._array("<i4", 0, start, stop)

    def offsets(self, start: int, stop: int) -> np.ndarray:
        """Return the byte of NAME.bin where each of the sequences begins, int64 [stop - start]."""
        return self._array("<i8", 4 * self.sequences, start, stop)

    def bounds(self, start: int, stop: int) -> np.ndarray:
        """Return the first sequence of documents ``start`` to ``stop`` and of the next: int64 [stop - start + 1]."""
        return self._array("<i8", 12 * self.sequences, start, stop + 1)

    @property
    def bytes(self) -> int:
        """The minimum size of the index in bytes."""
        return len(MAGIC) + _HEADER.size + 12 * self.sequences + 8 * (self.documents + 1)

    def _array(self, dtype: str, begin: int, start: int, stop: int) -> np.ndarray:
        begin += len(MAGIC) + _HEADER.size
        item = np.dtype(dtype).itemsize
        return np.frombuffer(read(ByteRange(self.path, begin + start * item, begin + stop * item)), dtype)


@dataclass(frozen=True)
class Documents:
    """Documents ``first`` to ``last`` - 1 of an index, whose ids are in the file ``bin``."""

    index: Index
    bin: str
    first: int
    last: int


class MegatronReader(Reader[MegatronSource, Documents]):
    """Indexes, each with its file of ids."""

    def missing(self, where: str) -> list[str]:
        return missing_paths(self.source.paths, where)

    def find(self, where: str, passed: PassedOver) -> list[File]:
        """Return the indexes, each followed by its file of ids. Raises UserError when one is missing."""
        paths = tuple(map(_with_ending, self.source.paths))
        files: list[File] = []
        for index in find_files(paths, (".idx",), f"{where}.path", passed):
            ids = Path(index.path).with_suffix(".bin")
            if not ids.is_file():
                raise UserError(f"{where}.path: {ids} does not exist beside {index.path}; restore it")
            files += [index, described(ids, Path(index.name).with_suffix(".bin").as_posix(), index.named)]
        others = [name for name in passed.pop(OTHERS, ()) if name not in {file.path for file in files}]
        passed |= {OTHERS: others} if others else {}
        return files

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[Documents]], list[str]]:
        """Group the documents. Raises UserError for what is no index, or for an index that does not fit its ids."""
        units: list[WorkUnit[Documents]] = []
        for index_file, ids in zip(index.files[::2], index.files[1::2], strict=True):
            header = _read_index(index_file)
            ends = _ends(header, ids)
            nominal = np.arange(length, int(ends[-1]), length) if ends.size else np.empty(0, np.int64)
            cuts = np.searchsorted(ends, nominal) + 1
            bounds = np.unique([0, *cuts.tolist(), header.documents]).tolist()
            for first, last in pairwise(bounds):
                size = int(ends[last - 1] - (ends[first - 1] if first else 0))
                location = f"{ids.path}, documents {first} to {last - 1}"
                units.append(WorkUnit(self, Documents(header, ids.path, first, last), location, size))
        return units, []

    def documents(self, part: Documents, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield the documents of ``part`` that have a token."""
        bounds = part.index.bounds(part.first, part.last)
        begin, end = int(bounds[0]), int(bounds[-1])
        lengths, offsets = part.index.lengths(begin, end), part.index.offsets(begin, end)
        ids = _Ids(part.bin, part.index.dtype)
        for document, (start, stop) in enumerate(zip(bounds - begin, bounds[1:] - begin, strict=False), part.first):
            pieces = [
                (int(offset) // ids.item + at, min(SLICE, length - at))
                for offset, length in zip(offsets[start:stop], lengths[start:stop].tolist(), strict=True)
                for at in range(0, length, SLICE)
            ]
            location = f"{part.bin}, document {document}"
            for number, (at, count) in enumerate(pieces, 1):
                yield TokenIds(ids.read(at, count), location, continues=number < len(pieces))


class _Ids:
    """The ids of a file, read ahead: most documents are short and follow one another."""

    def __init__(self, path: str, dtype: str) -> None:
        self._path, self._dtype, self.item = path, dtype, np.dtype(dtype).itemsize
        self._count = Path(path).stat().st_size // self.item
        self._start, self._ahead = 0, np.empty(0, dtype)

    def read(self, at: int, count: int) -> np.ndarray:
        if not self._start <= at <= at + count <= self._start + self._ahead.size:
            stop = min(max(at + SLICE, at + count), self._count)
            self._ahead = np.frombuffer(read(ByteRange(self._path, at * self.item, stop * self.item)), self._dtype)
            self._start = at
        return self._ahead[at - self._start : at - self._start + count]


def _read_index(file: File) -> Index:
    with open_file(file.path) as source:
        head = source.read(len(MAGIC) + _HEADER.size)
    if not head.startswith(MAGIC) or len(head) < len(MAGIC) + _HEADER.size:
        raise UserError(f"{file.path}: is no index of Megatron-LM (MMapIndexedDataset); preprocess the data anew")
    version, code, sequences, bounds = _HEADER.unpack(head[len(MAGIC) :])
    if version != 1 or code not in _DTYPES:
        raise UserError(f"{file.path}: has version {version} and type {code}; only version 1 with integers is known")
    index = Index(file.path, _DTYPES[code], sequences, max(0, bounds - 1))
    if file.size < index.bytes:
        raise UserError(f"{file.path}: has {file.size:,} bytes, and its header says {index.bytes:,}; restore it")
    return index


def _ends(index: Index, ids: File) -> np.ndarray:
    """Return the bytes up to the end of each document, int64 [documents]. Raises UserError when ``ids`` do not fit."""
    item = np.dtype(index.dtype).itemsize
    lengths = index.lengths(0, index.sequences).astype(np.int64)
    offsets = index.offsets(0, index.sequences)
    bounds = index.bounds(0, index.documents) if index.documents else np.zeros(1, np.int64)
    fits = (lengths >= 0).all() and (offsets >= 0).all() and not (offsets % item).any()
    fits = fits and ((offsets + lengths * item) <= ids.size).all()
    if not fits or (np.diff(bounds) < 0).any() or bounds[0] != 0 or bounds[-1] != index.sequences:
        raise UserError(f"{index.path}: does not fit {ids.path} of {ids.size:,} bytes; restore both from one run")
    total = np.concatenate([[0], np.cumsum(lengths)]) * item
    return total[bounds[1:]]


def _with_ending(path: str) -> str:
    if is_pattern(path) or local_path(path).is_dir():
        return path
    return path.removesuffix(".bin").removesuffix(".idx") + ".idx"
