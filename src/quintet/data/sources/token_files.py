"""Files of tokens: raw ids behind a header that is passed over, read in slices so that memory stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from quintet.config.sources import BinSource, NpySource
from quintet.data.sources import remote
from quintet.data.sources.document import Document, Report, TokenIds
from quintet.data.sources.files import File, described, files_at
from quintet.data.sources.remote import is_remote
from quintet.data.sources.rows import BadRow, loss_mask_of
from quintet.data.sources.spans import ByteRange, open_file, read
from quintet.errors import UserError, one_line
from quintet.tokenize.base import NO_END

SLICE = 1 << 20  # tokens read at once


@dataclass(frozen=True)
class TokenFile:
    """``count`` ids of ``dtype`` in a file from byte ``offset`` on."""

    path: str
    dtype: str
    offset: int
    count: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids ``start`` to ``stop``, [stop - start]."""
        item = np.dtype(self.dtype).itemsize
        return np.frombuffer(
            read(ByteRange(self.path, self.offset + start * item, self.offset + stop * item)), dtype=self.dtype
        )

    def part(self, source: NpySource | BinSource) -> TokenFile:
        """What ``source`` reads of the file."""
        start, stop = (_place(place, self.count) for place in (source.start, source.stop))
        start = min(start, stop)
        return replace(self, offset=self.offset + start * np.dtype(self.dtype).itemsize, count=stop - start)


def _place(place: float | None, count: int) -> int:
    """A token, or a fraction of ``count`` of them, as a token; None is the end."""
    if place is None:
        return count
    return min(int(place * count) if isinstance(place, float) else place, count)


@dataclass(frozen=True)
class Labels:
    """The ids again, or ``ignore_index`` where there is no loss."""

    file: TokenFile
    ignore_index: int

    def loss_mask(self, start: int, ids: np.ndarray) -> np.ndarray:
        """Where ``ids``, from token ``start`` on, have a loss: bool [tokens]. Raises UserError for other labels."""
        try:
            return loss_mask_of(ids, self.file.read(start, start + ids.size), self.ignore_index)
        except BadRow as bad:
            raise UserError(f"{self.file.path}, from token {start} on: {bad}") from None


@dataclass(frozen=True)
class ArrayUnit:
    """A file of npy or bin; ``labels`` is the file of its labels. ``size`` in bytes."""

    source: NpySource | BinSource
    path: str
    size: int
    labels: str | None = None

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        return self.path


def array_units(source: NpySource | BinSource, files: list[File]) -> list[ArrayUnit]:
    """A unit for each of ``files`` that is no file of labels: only a reader knows where documents end."""
    if isinstance(source, BinSource):
        return [ArrayUnit(source, file.path, file.size) for file in files]
    paths = {file.path for file in files}
    labels = {path: labels_file(path) for path in paths if labels_file(path) in paths}
    return [
        ArrayUnit(source, file.path, file.size, labels.get(file.path))
        for file in files
        if file.path not in labels.values()
    ]


def with_labels(files: list[File]) -> list[File]:
    """``files`` and the files of labels beside them."""
    paths = {file.path for file in files}
    found = []
    for file in files:
        beside = labels_file(file.path)
        if beside in paths:
            continue
        if is_remote(file.path):
            found += list(files_at(beside)) if remote.exists(beside) else []
        elif Path(beside).is_file():
            found.append(described(Path(beside), labels_file(file.name), file.named))
    return [*files, *found]


def labels_file(path: str) -> str:
    """Where the labels of the array at ``path`` are, if it has any."""
    return f"{path[:-4]}_labels{path[-4:]}" if path.lower().endswith(".npy") else f"{path}_labels.npy"


def array_documents(unit: ArrayUnit, report: Report, end_id: int) -> Iterator[Document]:
    """The tokens of ``unit``: documents that end with every ``end_id``, or with `document: file` one.

    Raises UserError for a file that is no such array, or is cut short, and for labels that do not fit.
    """
    end = None if unit.source.document == "file" or end_id == NO_END else end_id
    if isinstance(unit.source, BinSource):
        return cut_at(raw_file(unit.path, unit.size, unit.source.dtype).part(unit.source), end, report)
    tokens = npy_file(unit.path)
    if unit.labels is None:
        return cut_at(tokens.part(unit.source), end, report)
    labels = npy_file(unit.labels)
    if labels.count != tokens.count:
        raise UserError(
            f"{labels.path}: has {labels.count:,} labels, and {tokens.path} has {tokens.count:,} tokens; "
            "make them anew, or move the labels away"
        )
    return cut_at(tokens.part(unit.source), end, report, Labels(labels.part(unit.source), unit.source.ignore_index))


def cut_at(
    tokens: TokenFile, end: int | None, report: Report, labels: Labels | None = None, stop: int | None = None
) -> Iterator[Document]:
    """Ids of ``tokens`` up to ``stop``, slice by slice, as one document or as those that end with ``end``, which
    ``report`` counts."""
    stop = tokens.count if stop is None else stop
    for start in range(0, stop, SLICE):
        ids = tokens.read(start, min(start + SLICE, stop))
        loss_mask = None if labels is None else labels.loss_mask(start, ids)
        at = 0
        for behind in [] if end is None else (np.flatnonzero(ids == end) + 1).tolist():
            report.matched["end_id"] += 1
            yield _piece(tokens, start, ids, loss_mask, at, behind, continues=False)
            at = behind
        if at < ids.size:
            yield _piece(tokens, start, ids, loss_mask, at, ids.size, continues=start + ids.size < stop)


def raw_file(path: str, size: int, dtype: str) -> TokenFile:
    """The file at ``path`` of ``size`` bytes, ids and nothing else. Raises UserError when these are no whole ids."""
    item = np.dtype(dtype).newbyteorder("<")
    if size % item.itemsize:
        raise UserError(
            f"{path}: {size:,} bytes are no whole number of {dtype} ids; correct the dtype, or restore the file"
        )
    return TokenFile(path, item.str, 0, size // item.itemsize)


def npy_file(path: str) -> TokenFile:
    """The array at ``path``. Raises UserError unless it is one of integers, with one axis that is longer than 1."""
    with open_file(path) as file:
        shape, dtype, offset, size = _header(path, file)
    if dtype.kind not in "iu":
        raise UserError(f"{path}: holds {dtype}, not token ids; name an array of integers")
    if sum(length != 1 for length in shape) > 1:
        raise UserError(f"{path}: has the shape {list(shape)}; name an array of one axis, or ravel it")
    count = int(np.prod(shape, dtype=np.int64))
    if size != offset + count * dtype.itemsize:
        raise UserError(
            f"{path}: has {size:,} bytes, and its header says {offset + count * dtype.itemsize:,}; restore the file"
        )
    return TokenFile(path, dtype.str, offset, count)


def _header(path: str, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Shape, type, where the data begins, and bytes in all."""
    readers: dict[tuple[int, int], Callable] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: is no array of NumPy ({one_line(error)}); make it with numpy.save") from None
    offset = file.tell()
    return shape, dtype, offset, file.seek(0, 2)


def _piece(
    tokens: TokenFile, start: int, ids: np.ndarray, loss_mask: np.ndarray | None, at: int, to: int, *, continues: bool
) -> TokenIds:
    place = f"{tokens.path}, from token {start + at} on"
    return TokenIds(ids[at:to], place, None if loss_mask is None else loss_mask[at:to], continues)
