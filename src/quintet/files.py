"""Files and folders that appear at once and whole, also when the process is killed or several write the same one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}")


def unfinished_name(place: Path) -> Path:
    """Another name for ``place`` until it is whole, which no other writer has, on this machine or another."""
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}")


def remembered(name: str) -> Path:
    """Return the folder ``name`` of what is remembered for this user on this machine. Raises FileNotFoundError for one
    without a home."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise FileNotFoundError(errno.ENOENT, "there is no home folder", home)
    return Path(home, ".cache", "quintet", name)


def set_aside(path: Path) -> Path:
    """Give the damaged file or folder ``path`` a name under which nobody looks for it, and return that."""
    names = (f"{path.name}.damaged{number}" for number in chain([""], (f"-{n}" for n in count(2))))
    return path.rename(next(other for other in map(path.with_name, names) if not other.exists()))


def remove(path: Path) -> None:
    """Remove the file, the link or the folder ``path``, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """True if ``path`` has a name that `unfinished_name` gave it."""
    return _UNFINISHED.fullmatch(path.name) is not None


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left directly in ``folder``, into which nobody else writes now."""
    for left in folder.glob(".*"):
        if is_unfinished(left):
            remove(left)


def write_text(file: Path, text: str) -> None:
    """Write ``file``, in UTF-8 and with line ends as in ``text``; a kill leaves the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(file)
    with unfinished.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(unfinished, file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` as durable as the files: a power loss takes back no rename before this call."""
    if sys.platform == "win32":  # which opens no folder, and keeps names in its journal
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:  # some network file systems sync files alone
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """Make every file and every name in ``folder`` durable."""
    for file in folder.rglob("*"):
        if file.is_dir():
            sync_folder(file)
        elif file.is_file():
            with file.open("r+b") as content:
                os.fsync(content.fileno())
    sync_folder(folder)


def to_json(value: Any, *, indent: int | None = None, ascii: bool = True) -> str:
    """``value`` as JSON (RFC 8259), which has neither NaN nor infinities: null stands for a figure that is not finite.

    All figures that leave the program as JSON are written here. ``ascii`` escapes the characters beyond it.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ascii, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The value that ``text``, JSON in UTF-8, holds. Raises ValueError for all that cannot be read: what is no JSON or
    no UTF-8, what is nested too deeply, and numbers that are too long."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError("it holds a whole number of thousands of digits") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...] | str | float | None) -> Any:
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
def new_folder(folder: Path, *, shared: bool = False) -> Generator[Path]:
    """An empty folder to fill, which gets the name ``folder`` when the block ends and is removed when the block fails.

    ``folder`` is not there yet, or empty. Where it is ``shared``, others may write the same one meanwhile, and the
    first of them stays. Raises OSError when ``folder`` holds something and is not shared.
    """
    unfinished = unfinished_name(folder)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        sync_tree(unfinished)
        try:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # which Windows does not replace
            os.replace(unfinished, folder)
            sync_folder(folder.parent)
        except OSError:
            if not (shared and folder.is_dir()):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
