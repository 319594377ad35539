"""Files and folders that appear complete or not at all, even if the process is killed or several write the same one,
and lock files, to which their holder writes signs of life."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}")
BEAT = 2.0
"""Seconds between two signs of life of the holder of a lock file."""
GONE = 30.0
"""Seconds without a sign of life after which the holder of a lock file counts as killed."""
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would become larger than is allowed here (ulimit -f)",
}
"""What to tell the user, by the number of an OSError that means that a disk has no room."""
_OF_A_PATH = {
    errno.EACCES: "permission denied; change its permissions, or name another path",
    errno.EPERM: "the system does not permit this; change its permissions, or name another path",
    errno.EROFS: "its file system is read-only; name another path",
    errno.ENOTDIR: "a part of this path is a file, not a folder; correct the path",
    errno.ELOOP: "its symbolic links form a loop; correct them",
    errno.EIO: "the disk reports an error; check it, or name another path",
    errno.ESTALE: "the network file system has lost it; mount it again, or name another path",
}


def problem_of_path(error: OSError) -> str | None:
    """Return a line for an ``error`` that the user can mend: no room, or a path that may not be used. None for others,
    such as a missing file, which a check should have found."""
    if error.errno in NO_ROOM:
        where = f" ({error.filename})" if error.filename else ""
        return f"{NO_ROOM[error.errno]}{where}; make room and give the same command again to continue"
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:60]}…: no file can have so long a name"
    if error.filename and error.errno in _OF_A_PATH:
        return f"{error.filename}: {_OF_A_PATH[error.errno]}"
    return None


def unfinished_name(place: Path) -> Path:
    """Return a name for ``place`` while it is written, which no other process uses, on this machine or another."""
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}")


def cache_folder(name: str) -> Path:
    """Return the folder ``name`` in this user's cache. Raises FileNotFoundError for a user without a home folder."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise FileNotFoundError(errno.ENOENT, "there is no home folder", home)
    return Path(home, ".cache", "quintet", name)


def set_aside(path: Path) -> Path:
    """Rename the damaged file or folder ``path`` so that nothing reads it, and return its new path."""
    names = (f"{path.name}.damaged{number}" for number in chain([""], (f"-{n}" for n in count(2))))
    return path.rename(next(other for other in map(path.with_name, names) if not other.exists()))


def remove(path: Path) -> None:
    """Remove the file, link or folder ``path``, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Return True if ``path`` has a name from `unfinished_name`."""
    return _UNFINISHED.fullmatch(path.name) is not None


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files and folders that killed processes left directly in ``folder``. No other process may write
    into it at the time."""
    for path in folder.glob(".*"):
        if is_unfinished(path):
            remove(path)


def write_text(file: Path, text: str) -> None:
    """Write ``file`` in UTF-8 with the line ends of ``text``; a kill leaves the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(file)
    with unfinished.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(unfinished, file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, so that a power loss undoes no earlier rename."""
    if sys.platform == "win32":  # which cannot open a folder, and has a journal for names
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:  # some network file systems sync only files
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
    """Return ``value`` as JSON (RFC 8259), with null for NaN and infinities. ``ascii`` escapes other characters."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ascii, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """Return the value of ``text``, JSON in UTF-8. Raises ValueError for everything that cannot be read: other text,
    deep nesting, and numbers that are too long."""
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
    """Return the SHA-256 of the names, sizes and contents of ``files``, in the order of their names, as 64 hex digits.

    In a file beyond 64 MiB 1,024 blocks of 64 KiB are read, evenly spread from the first to the last byte: a checkpoint
    that was trained further, converted or cut has another digest, but a few changed numbers among many gigabytes may go
    unnoticed.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
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
    """Yield an empty folder, which is renamed to ``folder`` at the end of the block, or removed if the block fails.

    ``folder`` does not exist yet, or is empty. If it is ``shared``, other processes may write the same folder, and the
    first one stays. Raises OSError if ``folder`` is not empty and not shared.
    """
    unfinished = unfinished_name(folder)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        sync_tree(unfinished)
        try:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # Windows replaces no folder
            os.replace(unfinished, folder)
            sync_folder(folder.parent)
        except OSError:
            if not (shared and folder.is_dir()):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def create_lock_file(file: Path) -> int | None:
    """Create ``file`` and return its file descriptor, open for writing; None if the file exists already."""
    try:
        return os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    except PermissionError:  # Windows raises this for a file that is being removed
        if sys.platform != "win32":
            raise
        return None


class Heartbeat:
    """A thread that calls ``beat`` every `BEAT` seconds until ``stop``, to write a sign of life to a lock file."""

    def __init__(self, beat: Callable[[], object]) -> None:
        self._beat, self._stopping = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="lock", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for its end."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(BEAT):
            with suppress(OSError):  # a disk may be full or unreachable for a moment
                self._beat()
