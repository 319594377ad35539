"""Reading the bytes of files, on this disk or at an address, as a whole or in ranges, compressed or not."""

import gzip
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from quintet.errors import UserError, one_line
from quintet.libraries import require

_COMPRESSED = (".gz", ".zst")
_BLOCK = 1 << 16
_READ = 1 << 20
_READ_COMPRESSED = 1 << 17  # a block may become a thousand times as large


class BadFile(UserError):
    """Raised when the rest of a file cannot be read."""


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


def is_remote(path: str) -> bool:
    """Return True if ``path`` begins with a scheme, such as s3://."""
    return "://" in path


def is_compressed(path: str) -> bool:
    """Return True if the ending of the name says that the file is compressed."""
    return path.lower().endswith(_COMPRESSED)


def file_system(path: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, which keeps its connections, and the file's name in it.

    Raises UserError when no installed library knows the scheme.
    """
    fsspec = require("fsspec", "remote", f"{path}: an address")
    try:
        system = fsspec.filesystem(path.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error}; install what it names, or use another address") from None
    return system, system._strip_protocol(path)


@contextmanager
def errors_at(path: str) -> Generator[None]:
    """Raise UserError about the address ``path`` for any error inside: each file system has errors of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); check the address, the network and what you may read"
        ) from error


def open_file(path: str) -> BinaryIO:
    """Open ``path``, a file on this disk or an address, to read bytes. Raises UserError when it cannot be opened."""
    if is_remote(path):
        system, name = file_system(path)
        with errors_at(path):
            return system.open(name, "rb")
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it or change its permissions") from None


def read(span: ByteRange) -> bytes:
    """Return the bytes of ``span``. Raises UserError when the file has become shorter."""
    if is_remote(span.path):
        system, name = file_system(span.path)
        with errors_at(span.path):
            data = system.cat_file(name, start=span.start, end=span.stop) if span.size else b""
    else:
        with open_file(span.path) as file:
            file.seek(span.start)
            data = file.read(span.size)
    if len(data) != span.size:
        raise UserError(f"{span.path}: became shorter while it was read; run again when nothing writes to it")
    return data


def blocks(path: str) -> Iterator[bytes]:
    """Yield the content of ``path`` in blocks of any length, decompressed if its name says that it is compressed.

    Raises BadFile when the file is damaged or ends too early.
    """
    done = 0
    with open_file(path) as file:
        try:
            for block in _decompressed(path, file):
                yield block
                done += len(block)
        except (EOFError, OSError, zlib.error) as error:
            raise BadFile(
                f"{path}: is damaged or cut short after {done:,} bytes of its content ({error}); fetch it again"
            ) from None


def _decompressed(path: str, file: BinaryIO) -> Iterator[bytes]:
    if path.lower().endswith(".zst"):
        return _zstandard(path, file)
    inner = gzip.GzipFile(fileobj=file) if is_compressed(path) else file
    return iter(lambda: inner.read(_READ), b"")


def _zstandard(path: str, file: BinaryIO) -> Iterator[bytes]:
    """Yield the content frame by frame: the library's own reader, which fsspec uses too, accepts a truncated frame."""
    zstandard = require("zstandard", "zstd", f"{path}: decompressing it")
    frames = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame, begun = frames.decompressobj(), False
    try:
        for block in iter(lambda: file.read(_READ_COMPRESSED), b""):
            while block:
                yield frame.decompress(block)
                block, begun = b"", True
                if frame.eof:
                    block, frame, begun = frame.unused_data, frames.decompressobj(), False
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if begun:
        raise EOFError("a frame ends too early")


def records(content: Iterable[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the records between ``separator``s in a content that comes in blocks, each with its offset.

    A separator at the end of the content ends the last record.
    """
    rest, searched, offset = bytearray(), 0, 0
    for block in content:
        whole: bytes | bytearray = block  # not copied if the previous block left no rest
        if rest:
            rest += block
            whole = rest
        start = 0
        while (stop := whole.find(separator, max(start, searched))) >= 0:
            yield offset + start, bytes(whole[start:stop])
            start = stop + len(separator)
        if whole is rest:
            del rest[:start]
        else:
            rest = bytearray(whole[start:])
        offset += start
        searched = max(0, len(rest) - len(separator) + 1)
    if rest:
        yield offset, bytes(rest)


def cut(path: str, size: int, separator: bytes, length: int) -> list[ByteRange]:
    """Return the file in ranges of about ``length`` bytes, each of which ends just after a ``separator`` or at the end
    of the file.

    Splitting the ranges one by one gives what splitting the whole file gives, even if the separator can overlap itself
    (two newlines separate, and there are three): a cut comes only after an occurrence that no earlier occurrence
    overlaps, and such an occurrence is a separator wherever the reading began.
    """
    cuts = [0]
    with open_file(path) as file:
        while cuts[-1] + length < size:
            position = _safe_cut(file, separator, cuts[-1] + length, size)
            if position is None or position >= size:
                break
            cuts.append(position)
    return [ByteRange(path, start, stop) for start, stop in zip(cuts, [*cuts[1:], size], strict=True)]


def _safe_cut(file: BinaryIO, separator: bytes, nominal: int, size: int) -> int | None:
    """Return the first position after a separator that begins at ``nominal`` or later and overlaps no earlier one."""
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


def line_of(path: str, offset: int) -> int:
    """Return the number of the line, from 1, with byte ``offset`` of the file. Reads all before it: for messages."""
    line, left = 1, offset
    with open_file(path) as file:
        while left and (data := file.read(min(left, _READ))):
            line += data.count(b"\n")
            left -= len(data)
    return line
