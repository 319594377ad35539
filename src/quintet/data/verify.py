"""Arrays on disk that are compared with what was written: once, and again whenever their files change.

What was found whole is noted in the home of the user and not beside the files, so that these may be read-only.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from quintet.files import from_json, remembered, write_text
from quintet.system import cores
from quintet.tokenize.base import digest

HEADER = 128  # bytes of NumPy's header for a one-dimensional array, whatever its length; checked when one is written
_READ = 1 << 20  # bytes, a multiple of what a value takes; they stay in the core's cache (8 MiB: 2.2 GB/s, not 3.1)
_THREADS = 8  # more read no disk faster
_LONG = 1 << 30  # bytes from which on it takes so long that it is told

ProgressCallback = Callable[[str, int, int], None]


class Check(Protocol):
    """What a file must be; its `repr` says all that it is compared with."""

    def problem(self, file: Path) -> str | None:
        """The problem with ``file``, None if there is none."""
        ...


@dataclass(frozen=True)
class ArrayCheck:
    """An array of ``count`` values of ``dtype``, whose CRC-32 is ``checksum``; with a ``vocab_size`` they are ids below
    it."""

    dtype: str
    count: int
    checksum: int
    vocab_size: int | None = None

    def problem(self, file: Path) -> str | None:
        item, found = np.dtype(self.dtype), 0
        with file.open("rb") as content:
            if content.read(HEADER) != npy_header(item, self.count):
                return f"its header is not that of {self.count:,} values of {item.name}"
            while data := content.read(_READ):
                found = zlib.crc32(data, found)
                if self.vocab_size is not None:
                    before = (content.tell() - len(data) - HEADER) // item.itemsize
                    if problem := beyond_vocabulary(np.frombuffer(data, item), before, self.vocab_size):
                        return problem
        return None if found == self.checksum else "its bytes are not those that were written (another checksum)"


def beyond_vocabulary(ids: np.ndarray, before: int, vocab_size: int) -> str | None:
    """The problem with the first of ``ids``, [ids] of an unsigned dtype, that is ``vocab_size`` or more; None where all
    are below. ``before`` tokens of the shard stand before them."""
    if not ids.size or int(ids.max()) < vocab_size:
        return None
    at = int(np.flatnonzero(ids >= vocab_size)[0])
    return f"token {before + at:,} of it is the id {int(ids[at]):,}, and its tokenizer has {vocab_size:,} ids"


def npy_header(dtype: np.dtype, count: int) -> bytes:
    """NumPy's header (NEP 1) of a one-dimensional array, `HEADER` bytes."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype.str, "fortran_order": False, "shape": (count,)})
    assert out.tell() == HEADER, out.tell()
    return out.getvalue()


def find_damage(folder: Path, checks: Mapping[str, Check], progress: ProgressCallback | None = None) -> list[str]:
    """A line for each problem that the ``checks`` of the files of ``folder``, by name, find.

    A file that passed is not read again while it is to be the same and its size, time and inode stay. What passed is
    noted in the home, by the path of the folder; where it cannot be noted, it is checked every time. Files are read by
    several threads, and where there are gigabytes to read, ``progress`` is told.
    """
    known = _read(folder)
    with os.scandir(folder) as entries:
        facts = {one.name: _facts(one.stat(), checks[one.name]) for one in entries if one.name in checks}
    new = [name for name in checks if name in facts and known.get(name) != facts[name]]
    total, done = sum(facts[name][0] for name in new), 0
    problems: dict[str, str | None] = {name: "is missing" for name in checks if name not in facts}

    def problem_of(name: str) -> str | None:
        return checks[name].problem(folder / name)

    with ThreadPoolExecutor(max(1, min(_THREADS, cores(), len(new)))) as threads:
        found = threads.map(problem_of, new)
        for name, problem in zip(new, found, strict=True):
            problems[name] = problem
            done += facts[name][0]
            if progress is not None and total >= _LONG:
                progress(f"comparing {folder.name} with its checksums", done, total)
    passed = {name: facts[name] for name in checks if problems.get(name) is None}
    if passed != known:
        with suppress(OSError):
            write_text(_note(folder), json.dumps(passed))
    return [f"{folder / name}: {problem}" for name, problem in problems.items() if problem is not None]


def forget_all() -> None:
    """Have every file read again when it is used next."""
    with suppress(OSError):
        shutil.rmtree(remembered("verified"))


def _note(folder: Path) -> Path:
    return remembered("verified") / f"{digest(str(folder.resolve()))}.json"


def _facts(stat: os.stat_result, check: Check) -> tuple[int, int, int, str]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, digest(repr(check))


def _read(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    try:
        found = from_json(_note(folder).read_bytes())
        return {name: tuple(facts) for name, facts in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # nothing was noted, or it was cut short
        return {}
