"""A lock on a folder, which one process holds alone or several processes share, on every operating system.

Where the system has `flock`, the lock is one of `flock`. Elsewhere, as on Windows, it consists of files: `.lock.alone`
exists while a process is alone or is about to share, and each process that shares has a `.lock.shared.*` of its own.
The owner of such a file writes to it now and then. A file that nobody has written to for `GONE` seconds belongs to a
process that was killed, and is removed.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from quintet.errors import UserError
from quintet.files import GONE, Heartbeat, create_lock_file

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

_GATE, _SHARED = ".lock.alone", ".lock.shared."
_PAUSE = 0.05  # seconds between two attempts


@contextmanager
def locked(folder: Path, *, alone: bool, wait: bool = True) -> Generator[bool]:
    """Hold the lock of ``folder``: ``alone``, or shared with all other processes that do not ask to be alone.

    Yields False if another process holds it and this one does not ``wait``. The lock ends with the process, however
    that ends: at once, or after half a minute without `flock`. Raises UserError if the file system cannot lock.
    """
    with (_by_system if fcntl is not None else _by_files)(folder, alone, wait) as held:
        yield held


@contextmanager
def _by_system(folder: Path, alone: bool, wait: bool) -> Generator[bool]:
    assert fcntl is not None
    # NFS replaces flock by its own lock, which needs a file open for reading to share and for writing to be alone.
    with (folder / ".lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise UserError(
                f"{folder}: its file system cannot lock files ({error.strerror}); put data.cache_dir on one that can"
            ) from None
        yield True


@contextmanager
def _by_files(folder: Path, alone: bool, wait: bool) -> Generator[bool]:
    file = _acquire(folder, alone, wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()


def _acquire(folder: Path, alone: bool, wait: bool) -> _LockFile | None:
    """Return the file by which this process holds the lock; None if other processes hold it."""
    others = _Others()
    gate: _LockFile | None = None
    while gate is None:
        gate = _LockFile.create(folder / _GATE)
        if gate is None and not _poll(lambda: others.are_gone([folder / _GATE]), wait):
            return None
    keep = False
    try:
        if not alone:
            return _LockFile.create(folder / f"{_SHARED}{secrets.token_hex(8)}")
        # While this process holds the gate nobody else enters, and those who share leave.
        keep = _poll(lambda: others.are_gone(folder.glob(f"{_SHARED}*")), wait)
        return gate if keep else None
    finally:
        if not keep:
            gate.close()


def _poll(done: Callable[[], bool], wait: bool) -> bool:
    """Return True as soon as ``done`` does; without ``wait`` return its first answer."""
    while not (result := done()) and wait:
        time.sleep(_PAUSE)
    return result


class _LockFile:
    """A file that this process has created, writes to and keeps open; Windows lets nobody remove an open file."""

    def __init__(self, file: Path, number: int) -> None:
        self._file, self._number = file, number
        self._heartbeat = Heartbeat(lambda: os.write(number, b"."))

    @classmethod
    def create(cls, file: Path) -> _LockFile | None:
        """Create ``file``; return None if it exists."""
        number = create_lock_file(file)
        return None if number is None else cls(file, number)

    def close(self) -> None:
        """Remove the file."""
        self._heartbeat.stop()
        os.close(self._number)
        self._file.unlink(missing_ok=True)


class _Others:
    """The lock files of other processes, as this process has seen them while it waits."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float, float]] = {}

    def are_gone(self, files: Iterable[Path]) -> bool:
        """Remove those of ``files`` that nobody writes to any more, and return True if none is left."""
        return not [file for file in files if not self._is_gone(file)]

    def _is_gone(self, file: Path) -> bool:
        now = time.monotonic()
        try:
            size = file.stat().st_size
            last_size, quiet, last_time = self._seen.get(file, (size, 0.0, now))
            # After a long pause between two checks, in which the machine may have slept, only one second counts.
            quiet = quiet + min(now - last_time, 1.0) if size == last_size else 0.0
            self._seen[file] = (size, quiet, now)
            if quiet < GONE:
                return False
            del self._seen[file]
            file.unlink()
        except FileNotFoundError:
            self._seen.pop(file, None)
        except PermissionError:  # Windows keeps a file that a process has open
            return False
        return True
