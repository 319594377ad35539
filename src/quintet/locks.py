"""Locks on a folder, which one process holds alone or several share, on every operating system.

Where the system has `flock`, it keeps them. Elsewhere, as on Windows, they are files: `.lock.alone` is there while a
process is alone or is about to share, and each that shares has a `.lock.shared.*` of its own. Whoever holds such a file
writes to it now and then; one to which nobody has written for `_GONE` seconds is left of a process that was killed, and
is removed.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quintet.errors import UserError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

_GATE, _SHARED = ".lock.alone", ".lock.shared."
_BEAT = 2.0  # seconds between two signs of life
_GONE = 30.0
_PAUSE = 0.05


@contextmanager
def locked(folder: Path, *, alone: bool, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``folder``: ``alone``, or together with all others that do not ask to be alone.

    Gives False where another process has it and this one does not ``wait``. The lock goes with the process, however
    that ends: at once, or after half a minute where there is no `flock`. Raises UserError where the file system cannot
    lock.
    """
    with (_by_system if fcntl is not None else _by_files)(folder, alone, wait) as held:
        yield held


@contextmanager
def _by_system(folder: Path, alone: bool, wait: bool) -> Iterator[bool]:
    assert fcntl is not None
    # Where a lock of NFS stands for this one, it needs a file that can be read to share and written to be alone.
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
def _by_files(folder: Path, alone: bool, wait: bool) -> Iterator[bool]:
    sign = _signed(folder, alone, wait)
    try:
        yield sign is not None
    finally:
        if sign is not None:
            sign.close()


def _signed(folder: Path, alone: bool, wait: bool) -> _Sign | None:
    """The file that holds the lock for this process, None where others have it."""
    others = _Others()
    gate: _Sign | None = None
    while gate is None:
        gate = _Sign.made(folder / _GATE)
        if gate is None and not _until(lambda: others.gone([folder / _GATE]), wait):
            return None
    keep = False
    try:
        if not alone:
            return _Sign.made(folder / f"{_SHARED}{secrets.token_hex(8)}")
        # Nobody comes in through the gate any more; those who are in go out.
        keep = _until(lambda: others.gone(folder.glob(f"{_SHARED}*")), wait)
        return gate if keep else None
    finally:
        if not keep:
            gate.close()


def _until(done: Callable[[], bool], wait: bool) -> bool:
    """True if ``done``: at once, or some time where this process waits."""
    while not (found := done()) and wait:
        time.sleep(_PAUSE)
    return found


class _Sign:
    """A file that this process made, keeps open, which Windows does not let others remove, and writes to."""

    def __init__(self, file: Path, number: int) -> None:
        self._file, self._number = file, number
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    @classmethod
    def made(cls, file: Path) -> _Sign | None:
        """The sign ``file``, None where it is there already."""
        try:
            return cls(file, os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return None
        except PermissionError:  # Windows says so of a file that is being removed
            if sys.platform != "win32":
                raise
            return None

    def close(self) -> None:
        """Remove the file."""
        self._closing.set()
        self._thread.join()
        os.close(self._number)
        self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT):
            os.write(self._number, b".")


class _Others:
    """The signs of other processes, as this one has seen them while it waits."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float, float]] = {}

    def gone(self, files: Iterable[Path]) -> bool:
        """True if none of ``files`` is there; those that nobody writes to any more are removed first."""
        return not [file for file in files if not self._is_gone(file)]

    def _is_gone(self, file: Path) -> bool:
        now = time.monotonic()
        try:
            size = file.stat().st_size
            before, quiet, looked = self._seen.get(file, (size, 0.0, now))
            # A look that comes late says nothing of the time before it, in which the machine may have slept.
            quiet = quiet + min(now - looked, 1.0) if size == before else 0.0
            self._seen[file] = (size, quiet, now)
            if quiet < _GONE:
                return False
            del self._seen[file]
            file.unlink()
        except FileNotFoundError:
            self._seen.pop(file, None)
        except PermissionError:  # Windows keeps what a process has open
            return False
        return True
