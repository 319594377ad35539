"""Compressed files, read from the beginning to the end: gzip and Zstandard, told apart by the name's ending."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from quintet.data.sources.spans import open_file
from quintet.errors import UserError
from quintet.libraries import require

ENDINGS = (".gz", ".zst")
_READ = 1 << 20
_READ_COMPRESSED = 1 << 17  # a block may become a thousand times as large


class BadFile(UserError):
    """The rest of a file cannot be read."""


def is_compressed(path: str) -> bool:
    """Whether the name says so."""
    return path.lower().endswith(ENDINGS)


def blocks(path: str) -> Iterator[bytes]:
    """The content of ``path``, decompressed if its name says that it is compressed, in blocks of any length.

    Raises BadFile where it is damaged or ends too early.
    """
    done = 0
    with open_file(path) as file:
        try:
            for block in _decompressed(path, file):
                yield block
                done += len(block)
        except (EOFError, OSError, zlib.error) as error:
            raise BadFile(
                f"{path}: is damaged or cut short behind {done:,} bytes of its content ({error}); fetch it again"
            ) from None


def records(found: Iterator[bytes], separator: bytes) -> Iterator[bytes]:
    """What stands between ``separator``s in a content that comes in blocks; nothing behind one at the end."""
    rest, searched = bytearray(), 0
    for block in found:
        rest += block
        start = 0
        while (stop := rest.find(separator, max(start, searched))) >= 0:
            yield bytes(rest[start:stop])
            start = stop + len(separator)
        del rest[:start]
        searched = max(0, len(rest) - len(separator) + 1)
    if rest:
        yield bytes(rest)


def _decompressed(path: str, file: BinaryIO) -> Iterator[bytes]:
    if path.lower().endswith(".zst"):
        return _zstandard(path, file)
    inner = gzip.GzipFile(fileobj=file) if is_compressed(path) else file
    return iter(lambda: inner.read(_READ), b"")


def _zstandard(path: str, file: BinaryIO) -> Iterator[bytes]:
    """Frame by frame: the library's own reader takes a frame that is cut short for one that ends."""
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
