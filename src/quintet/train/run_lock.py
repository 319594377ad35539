"""The lock on the folder of a run, in a file that names the process that holds it."""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from quintet.errors import UserError, printable
from quintet.files import BEAT, GONE, Heartbeat, create_lock_file, remove, to_json, unfinished_name


@dataclass(frozen=True)
class Holder:
    """The process that trains a run, on the machine ``host``, since the time ``since``.

    ``started`` and ``boot`` tell it from a later process with the same number. ``folder`` is the inode of the run's
    folder, which a copy of the folder does not share, and ``beat`` counts the signs of life.
    """

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
        """Describe this process."""
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        return cls(platform.node(), _boot(), os.getpid(), _started(os.getpid()), now, secrets.token_hex(8))

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    @property
    def is_here(self) -> bool:
        """True if the process was started on this machine after its last boot; then `is_alive` is right.

        False where one boot cannot be distinguished from another, as on Windows; there, signs of life decide.
        """
        return bool(self.boot) and (self.host, self.boot) == (platform.node(), _boot())

    @property
    def is_alive(self) -> bool:
        """True if the process, one of this machine, has not ended."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it belongs to somebody else
            return True
        return _started(self.process) == self.started


def _boot() -> str:
    """Return an id of this container and of this start of its machine; "" where there is none."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {namespace}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """Return the start time of ``process``, in the system's own form; "" where that is not known."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class RunLock:
    """The lock on the folder of a run: a file that names the holder, to which the holder writes signs of life.

    It needs only a file system that creates a file once. The lock of a holder that has ended goes to the next process
    that asks: at once on the holder's machine, after half a minute without a sign of life on others. As a context
    manager it releases the lock at the end.
    """

    def __init__(self) -> None:
        self._file: Path | None = None
        self._holder, self._number, self._beats = Holder.own(), -1, 0
        self._heartbeat: Heartbeat | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, folder: Path, say: Callable[[str], object] = lambda _: None) -> None:
        """Create ``folder`` and take its lock; ``say`` prints why that takes long. Raises UserError, which names the
        holder, if another process has the lock."""
        folder.mkdir(parents=True, exist_ok=True)
        file, inode = folder / ".running", folder.stat().st_ino
        self._holder = replace(self._holder, folder=inode)
        while not self._created(file):
            other, alive = _read_holder(file), False
            if other is not None and other.is_here:
                alive = other.folder == inode and other.is_alive
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
        self._heartbeat = Heartbeat(self._beat)

    def release(self) -> None:
        """Release the lock, if this process has it."""
        if self._file is None or self._heartbeat is None:
            return
        self._heartbeat.stop()
        os.close(self._number)
        if _read_holder(self._file, self._holder.token) is not None:
            self._file.unlink(missing_ok=True)
        self._file = None

    def _created(self, file: Path) -> bool:
        number = create_lock_file(file)
        if number is None:
            return False
        self._number = number
        self._sign()
        return True

    def _sign(self) -> None:
        # One call that always writes the same length, so that nobody reads half of it.
        os.lseek(self._number, 0, os.SEEK_SET)
        os.write(self._number, to_json(asdict(replace(self._holder, beat=f"{self._beats:012}"))).encode())

    def _beat(self) -> None:
        assert self._file is not None
        self._beats += 1
        if (now := _read_holder(self._file)) is not None and now.token != self._holder.token:
            line = f"error: {self._file.parent}: {now} has taken over the run, for this process gave no sign of"
            print(f"{printable(line)} life; it ends here", file=sys.stderr, flush=True)
            os._exit(2)  # so that this process writes nothing more to the run
        self._sign()


def _read_holder(file: Path, token: str | None = None) -> Holder | None:
    """Return the holder that ``file`` names; None if it cannot be read, or has another ``token``."""
    try:
        holder = Holder(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return holder if token in (None, holder.token) else None


def _changes(file: Path) -> bool:
    """Return True as soon as somebody writes ``file``; False after `GONE` quiet seconds, or when it is removed."""
    before = _content(file)
    for _ in range(round(GONE / BEAT)):
        time.sleep(BEAT)
        if (now := _content(file)) != before:
            return now is not None
    return False


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _remove(file: Path, holder: Holder | None) -> None:
    """Remove ``file`` if it still names ``holder``; other processes may do so at the same time."""
    aside = unfinished_name(file)
    try:
        file.rename(aside)
    except FileNotFoundError:
        return
    removed = _read_holder(aside)
    if removed is not None and (holder is None or removed.token != holder.token):
        with suppress(FileExistsError):  # another process has taken the lock in between
            os.link(aside, file)
    remove(aside)
