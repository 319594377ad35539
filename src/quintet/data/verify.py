"""Which files of a folder were found whole, so that each is read once and not at every start."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from quintet.files import write_text
from quintet.tokenize.base import digest

_READ = 1 << 23  # bytes, a multiple of what a value takes

Check = Callable[[Path], str | None]


def find_damage(folder: Path, checks: Mapping[str, Check]) -> list[str]:
    """What the ``checks`` of the files of ``folder``, by name, find wrong, a line for each.

    A file that passed is not read again while its size, time and inode stay. What passed is noted in the home, by the
    place of the folder, so that the folder may be read-only; where it cannot be noted, it is checked every time.
    """
    note = _notes() / f"{digest(str(folder.resolve()))}.json"
    known = _read(note)
    with os.scandir(folder) as entries:
        facts = {one.name: _facts(one.stat()) for one in entries if one.name in checks}
    found = {name: check(folder / name) for name, check in checks.items() if known.get(name) != facts[name]}
    passed = {name: facts[name] for name in checks if found.get(name) is None}
    if passed != known:
        with suppress(OSError):
            write_text(note, json.dumps(passed))
    return [f"{folder / name}: {problem}" for name, problem in found.items() if problem is not None]


def checksum_problem(start: int, checksum: int, dtype: str, vocab_size: int | None, file: Path) -> str | None:
    """What is wrong with the values in ``file`` from byte ``start`` on, whose CRC-32 is ``checksum``; None for nothing.
    With ``vocab_size`` they are ids of ``dtype`` below it."""
    found = 0
    with file.open("rb") as values:
        values.seek(start)
        while data := values.read(_READ):
            found = zlib.crc32(data, found)
            if vocab_size is not None and (last := int(np.frombuffer(data, dtype).max())) >= vocab_size:
                return f"holds the id {last}, and its tokenizer has {vocab_size} ids"
    return None if found == checksum else "its bytes are not those that were written (another checksum)"


def forget_all() -> None:
    """Have every file read again when it is used next."""
    shutil.rmtree(_notes(), ignore_errors=True)


def _notes() -> Path:
    return Path("~/.cache/quintet/verified").expanduser()


def _facts(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read(note: Path) -> dict[str, list[int]]:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):  # nothing was noted, or it was cut short: everything is read again
        return {}
    return found if isinstance(found, dict) else {}
