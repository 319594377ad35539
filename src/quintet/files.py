"""Files and folders that appear at once and whole, also when the process is killed or several write the same one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def unfinished_name(place: Path) -> Path:
    """Another name for ``place`` until it is whole, which no other writer has, on this machine or another."""
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}")


def write_text(file: Path, text: str) -> None:
    """Write ``file``, in UTF-8 and with line ends as in ``text``; a kill leaves the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(file)
    with unfinished.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(unfinished, file)


def to_json(value: Any, *, indent: int | None = None, ascii: bool = True) -> str:
    """``value`` as JSON (RFC 8259), which has neither NaN nor infinities: null stands for a figure that is not finite.

    All figures that leave the program as JSON are written here. ``ascii`` escapes the characters beyond it.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


_WHOLE, _BLOCKS, _BLOCK = 64 << 20, 1024, 64 << 10


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 of the names, the sizes and the content of ``files``, in the order of their names, as 64 hex digits.

    Of a file beyond 64 MiB the first and the last 64 KiB and 1,022 times as much evenly between are read: a checkpoint
    that was trained on, converted or cut has another digest; a few numbers that were changed in one of many gigabytes
    may go unseen.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda one: one.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            if size <= _WHOLE:
                digest.update(hashlib.file_digest(content, "sha256").digest())
                continue
            for block in range(_BLOCKS):
                content.seek((size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(content.read(_BLOCK))
    return digest.hexdigest()


@contextmanager
def new_folder(folder: Path, *, shared: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which gets the name ``folder`` when the block ends and is removed when the block fails.

    ``folder`` is not there yet, or empty. Where it is ``shared``, others may write the same one meanwhile, and the
    first of them stays. Raises OSError when ``folder`` holds something and is not shared.
    """
    unfinished = unfinished_name(folder)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # which Windows does not replace
            os.replace(unfinished, folder)
        except OSError:
            if not (shared and folder.is_dir()):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
