"""Checks that arrays on disk are as they were written: once, and again whenever their files change.

Files that passed are recorded in the home of the user and not beside the files, which may be read-only.
"""

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

from quintet.files import cache_folder, from_json, write_text
from quintet.system import cores
from quintet.tokenize.base import digest

HEADER = 128  # bytes of NumPy's header for a one-dimensional array of any length; `npy_header` asserts it
_READ = 1 << 20  # bytes, a multiple of each item size; they stay in the core's cache (8 MiB: 2.2 GB/s instead of 3.1)
_THREADS = 8  # more read no disk faster
_LONG = 1 << 30  # bytes that take so long that progress is reported

ProgressCallback = Callable[[str, int, int], None]


class Check(Protocol):
    """A check of a file; its `repr` has all that the file is compared with."""

    def problem(self, file: Path) -> str | None:
        """Return the problem with ``file``, None if there is none."""
        ...


@dataclass(frozen=True)
class ArrayCheck:
    """The check of an array of ``count`` values of ``dtype``, whose CRC-32 is ``checksum``; with a ``vocab_size``, the
    values are ids below it."""

    dtype: str
    count: int
    checksum: int
    vocab_size: int | None = None

    def problem(self, file: Path) -> str | None:
        item, checksum = np.dtype(self.dtype), 0
        with file.open("rb") as content:
            if content.read(HEADER) != npy_header(item, self.count):
                return f"its header is not that of {self.count:,} values of {item.name}"
            while data := content.read(_READ):
                checksum = zlib.crc32(data, checksum)
                if self.vocab_size is not None:
                    before = (content.tell() - len(data) - HEADER) // item.itemsize
                    if problem := beyond_vocabulary(np.frombuffer(data, item), before, self.vocab_size):
                        return problem
        return None if checksum == self.checksum else "its bytes are not those that were written (another checksum)"


def beyond_vocabulary(ids: np.ndarray, before: int, vocab_size: int) -> str | None:
    """Return the problem with the first of ``ids``, [ids] of an unsigned dtype, that is ``vocab_size`` or more; None if
    there is none. ``before`` tokens of the shard precede them."""
    if not ids.size or int(ids.max()) < vocab_size:
        return None
    at = int(np.flatnonzero(ids >= vocab_size)[0])
    return f"token {before + at:,} of it is the id {int(ids[at]):,}, and its tokenizer has {vocab_size:,} ids"


def npy_header(dtype: np.dtype, count: int) -> bytes:
    """Return NumPy's header (NEP 1) of a one-dimensional array, `HEADER` bytes."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype.str, "fortran_order": False, "shape": (count,)})
    assert out.tell() == HEADER, out.tell()
    return out.getvalue()


def find_damage(folder: Path, checks: Mapping[str, Check], progress: ProgressCallback | None = None) -> list[str]:
    """Return a line for each problem that ``checks``, by the names of files in ``folder``, find.

    A file that passed is not read again while its check, size, time and inode stay the same. Files that passed are
    recorded in the home, by the path of the folder; if that is impossible, they are checked every time. Several threads
    read the files, and ``progress`` is called if there are gigabytes to read.
    """
    known = _read_passed(folder)
    with os.scandir(folder) as entries:
        facts = {entry.name: _facts(entry.stat(), checks[entry.name]) for entry in entries if entry.name in checks}
    new = [name for name in checks if name in facts and known.get(name) != facts[name]]
    total, done = sum(facts[name][0] for name in new), 0
    problems: dict[str, str | None] = {name: "is missing" for name in checks if name not in facts}

    def problem_of(name: str) -> str | None:
        return checks[name].problem(folder / name)

    with ThreadPoolExecutor(max(1, min(_THREADS, cores(), len(new)))) as threads:
        for name, problem in zip(new, threads.map(problem_of, new), strict=True):
            problems[name] = problem
            done += facts[name][0]
            if progress is not None and total >= _LONG:
                progress(f"comparing {folder.name} with its checksums", done, total)
    passed = {name: facts[name] for name in checks if problems.get(name) is None}
    if passed != known:
        with suppress(OSError):
            write_text(_record(folder), json.dumps(passed))
    return [f"{folder / name}: {problem}" for name, problem in problems.items() if problem is not None]


def forget_all() -> None:
    """Forget the files that passed, so that each is read again at its next use."""
    with suppress(OSError):
        shutil.rmtree(cache_folder("verified"))


def _record(folder: Path) -> Path:
    return cache_folder("verified") / f"{digest(str(folder.resolve()))}.json"


def _facts(stat: os.stat_result, check: Check) -> tuple[int, int, int, str]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, digest(repr(check))


def _read_passed(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    try:
        passed = from_json(_record(folder).read_bytes())
        return {name: tuple(facts) for name, facts in passed.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # there is no record, or it is damaged
        return {}
