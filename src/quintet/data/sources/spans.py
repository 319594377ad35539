"""Parts of files that end where a record ends, so that one huge file can be read by many processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from quintet.data.sources import remote
from quintet.data.sources.remote import is_remote
from quintet.errors import UserError

_BLOCK = 1 << 16
_READ = 1 << 20


@dataclass(frozen=True)
class ByteRange:
    """Bytes ``start`` to ``stop`` of a file."""

    path: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


def cut(path: str, size: int, separator: bytes, length: int) -> list[ByteRange]:
    """The file in spans of about ``length`` bytes, each of which ends just behind a ``separator`` or with the file.

    Splitting the spans one by one gives what splitting the whole file from its beginning gives, also for a separator
    that overlaps itself (three newlines where two separate): a cut is made only behind an occurrence into which no
    earlier one reaches, and such a one is a separator wherever the reading began.
    """
    cuts = [0]
    with open_file(path) as file:
        while cuts[-1] + length < size:
            place = _safe_cut(file, separator, cuts[-1] + length, size)
            if place is None or place >= size:
                break
            cuts.append(place)
    return [ByteRange(path, start, stop) for start, stop in zip(cuts, [*cuts[1:], size], strict=True)]


def _safe_cut(file: BinaryIO, separator: bytes, nominal: int, size: int) -> int | None:
    """The first place behind a separator that begins at ``nominal`` or later and that no earlier one reaches into."""
    overlap = len(separator) - 1
    begin, length = max(0, nominal - overlap), _BLOCK
    while True:
        file.seek(begin)
        data = file.read(length + overlap)
        at = data.find(separator, nominal - begin)
        while at >= 0:
            if data.find(separator, max(0, at - overlap), at + overlap) < 0:
                return begin + at + len(separator)
            at = data.find(separator, at + 1)
        if begin + len(data) >= size or not data:
            return None
        length *= 2


def open_file(path: str) -> BinaryIO:
    """``path`` opened to read bytes. Raises UserError when that cannot be."""
    if is_remote(path):
        return remote.opened(path)
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it or change its permissions") from None


def read(span: ByteRange) -> bytes:
    """The bytes of ``span``. Raises UserError when the file has become shorter."""
    if is_remote(span.path):
        data = remote.read_range(span.path, span.start, span.stop) if span.size else b""
    else:
        with open_file(span.path) as file:
            file.seek(span.start)
            data = file.read(span.size)
    if len(data) != span.size:
        raise UserError(f"{span.path}: became shorter while it was read; run again when nothing writes to it")
    return data


def records(data: bytes, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """The records of ``data``, each with its offset; none behind a separator at the end."""
    start = 0
    while start < len(data):
        stop = data.find(separator, start)
        stop = len(data) if stop < 0 else stop
        yield start, data[start:stop]
        start = stop + len(separator)


def line_of(path: str, offset: int) -> int:
    """The number of the line, from 1, that byte ``offset`` of the file is in. Reads all before it: for messages."""
    line, left = 1, offset
    with open_file(path) as file:
        while left and (data := file.read(min(left, _READ))):
            line += data.count(b"\n")
            left -= len(data)
    return line
