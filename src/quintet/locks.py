"""Locks on a folder, which one process holds alone or several share, on every operating system, and that on a run.

Where the system has `flock`, it keeps them. Elsewhere, as on Windows, they are files: `.lock.alone` is there while a
process is alone or is about to share, and each that shares has a `.lock.shared.*` of its own. Whoever holds such a file
writes to it now and then; one to which nobody has written for `_GONE` seconds is left of a process that was killed, and
is removed.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from quintet.errors import UserError, printable
from quintet.files import remove, to_json, unfinished_name

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

_GATE, _SHARED = ".lock.alone", ".lock.shared."
_BEAT = 2.0  # seconds between two signs of life
_GONE = 30.0
_PAUSE = 0.05


@contextmanager
def locked(folder: Path, *, alone: bool, wait: bool = True) -> Generator[bool]:
    """Hold the lock of ``folder``: ``alone``, or together with all others that do not ask to be alone.

    Gives False where another process has it and this one does not ``wait``. The lock goes with the process, however
    that ends: at once, or after half a minute where there is no `flock`. Raises UserError where the file system cannot
    lock.
    """
    with (_by_system if fcntl is not None else _by_files)(folder, alone, wait) as held:
        yield held


@contextmanager
def _by_system(folder: Path, alone: bool, wait: bool) -> Generator[bool]:
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
def _by_files(folder: Path, alone: bool, wait: bool) -> Generator[bool]:
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


@dataclass(frozen=True)
class Holder:
    """The process that trains a run: on which machine, which one, since when. ``folder`` is the inode of the run's
    folder, which a copy does not share, and ``beat`` counts the signs of life."""

    host: str
    boot: str
    process: int
    started: str
    since: str
    token: str
    folder: int = 0
    beat: str = f"{0:012}"

    @classmethod
    def own(cls) -> Holder:
        """This process."""
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        return cls(platform.node(), _boot(), os.getpid(), _started(os.getpid()), now, secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    @property
    def is_here(self) -> bool:
        """True if the process is, or was, one of this machine, whose number says whether it is still there.

        Where nothing tells one start of the machine from another, as on Windows, the signs of life say it.
        """
        return bool(self.boot) and (self.host, self.boot) == (platform.node(), _boot())

    @property
    def lives(self) -> bool:
        """True if the process, one of this machine, has not ended."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it belongs to somebody else
            return True
        return _started(self.process) == self.started


def _boot() -> str:
    """What tells the time since this machine started, and this container, from every other; "" where nothing does."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {namespace}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When ``process`` started, so that a later one with its number is another; "" where that cannot be told."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class RunLock:
    """The lock on the folder of a run, in a file that names its holder, which gives signs of life in it.

    It needs nothing of the file system but that it creates a file once. A holder that has ended, which its machine
    knows at once and others after half a minute without a sign, is followed by the next that asks. As a context it
    releases what it has taken.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._holder, self._number = Holder.own(), -1
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, folder: Path, say: Callable[[str], object] = lambda _: None) -> None:
        """Hold ``folder``, which is made. Raises UserError, with who holds it, where somebody else does."""
        folder.mkdir(parents=True, exist_ok=True)
        file, inode = folder / ".running", folder.stat().st_ino
        self._holder = replace(self._holder, folder=inode)
        while not self._created(file):
            other, alive = _read_holder(file), False
            if other is not None and other.is_here:
                alive = other.folder == inode and other.lives
            elif other is None or other.folder == inode:
                say(f"{folder}: {other or 'another process'} has not released it; looking for a sign of life")
                alive = _changes(file)
            if alive:
                who = _read_holder(file) or other or "another process"
                raise UserError(
                    f"{folder}: is being trained by {who}; wait for it, stop it, or choose another name (name=…)"
                )
            _remove(file, other)
        self._file = file
        self._thread.start()

    def release(self) -> None:
        """Let the next one have it."""
        if self._file is None:
            return
        self._closing.set()
        self._thread.join()
        os.close(self._number)
        if _read_holder(self._file, self._holder.token) is not None:
            self._file.unlink(missing_ok=True)
        self._file = None

    def _created(self, file: Path) -> bool:
        try:
            self._number = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        self._sign(0)
        return True

    def _sign(self, beats: int) -> None:
        # Of the same length each time, and in one call, so that nobody reads half of it.
        os.lseek(self._number, 0, os.SEEK_SET)
        os.write(self._number, to_json(asdict(replace(self._holder, beat=f"{beats:012}"))).encode())

    def _beat(self) -> None:
        assert self._file is not None
        beats = 0
        while not self._closing.wait(_BEAT):
            beats += 1
            if (now := _read_holder(self._file)) is not None and now.token != self._holder.token:
                line = f"error: {self._file.parent}: {now} has taken over the run, for this process gave no sign of"
                print(f"{printable(line)} life; it ends here", file=sys.stderr, flush=True)
                os._exit(2)  # nothing may be written any more
            with suppress(OSError):  # a disk that is full or gone for a moment
                self._sign(beats)


def _read_holder(file: Path, token: str | None = None) -> Holder | None:
    """The holder that ``file`` names, with ``token`` that one alone; None where there is none or it cannot be read."""
    try:
        found = Holder(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if token in (None, found.token) else None


def _changes(file: Path) -> bool:
    """True as soon as somebody writes ``file``, False when nobody has for `_GONE` seconds or it is gone."""
    before = _content(file)
    for _ in range(round(_GONE / _BEAT)):
        time.sleep(_BEAT)
        if (now := _content(file)) != before:
            return now is not None
    return False


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _remove(file: Path, holder: Holder | None) -> None:
    """Remove ``file`` if it is still that of ``holder``, whoever else does the same."""
    aside = unfinished_name(file)
    try:
        file.rename(aside)
    except FileNotFoundError:
        return
    found = _read_holder(aside)
    if found is not None and (holder is None or found.token != holder.token):
        with suppress(FileExistsError):  # somebody came between: it is theirs
            os.link(aside, file)
    remove(aside)
