"""Metrics as JSON lines and samples as text files, which every run has: written, and read again."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import BinaryIO, ClassVar

from quintet.config.keypath import is_mapping
from quintet.files import from_json, set_aside, sync_folder, to_json, unfinished_name
from quintet.track.names import UsableNames, file_name
from quintet.track.tracker import RunStatus

_NAME = re.compile(r"^--- (.+)$", re.MULTILINE)
_HEADING = re.compile(r"^\\*--- ", re.MULTILINE)  # a line of a text that would be read as a name, or as such a line
_ESCAPED = re.compile(r"^\\(?=\\*--- )", re.MULTILINE)
_OTHERS = re.compile(rb'"(?:validation|benchmark|text|music)/')
_BLOCK, _SMALL_BLOCK = 4 << 20, 1 << 18  # bytes
_GROUPS = {"validation": "validation/", "text modelling": "text/", "benchmarks": "benchmark/"}


class JsonlTracker:
    """``metrics.jsonl`` with one object a record, and ``samples/`` with one file a step.

    In a file of samples a line ``--- name`` stands before each; a line of a text that begins so has a backslash before
    it. A continued run drops the records and samples after the step it continues from, and of this step those that are
    ``due`` again: the same steps write the same ones again. Lines that are no records are dropped too, after the file
    has been set aside, and ``say`` gets a line. A figure that is not finite is null in the file and NaN where it is
    read.
    """

    every_step: ClassVar[bool] = True

    def __init__(
        self, folder: Path, first_step: int, due: Sequence[str] = (), say: Callable[[str], object] = lambda _: None
    ) -> None:
        self._file = folder / "metrics.jsonl"
        self._samples = folder / "samples"
        self._names = UsableNames(file_name)
        for path, right in ((self._file, self._file.is_file()), (self._samples, self._samples.is_dir())):
            if path.exists() and not right:
                kind, aside = "file" if path == self._file else "folder", set_aside(path)
                say(f"{path}: is no {kind}; it is called {aside.name} now")
        if self._file.exists():
            _keep_until(self._file, first_step, tuple(_GROUPS[name] for name in due if name in _GROUPS), say)
        last_sample = first_step - ("samples" in due)
        for sample in self._samples.glob("step-*.*"):
            step = re.match(r"step-(\d+)", sample.name)
            if step is not None and int(step[1]) > last_sample:
                sample.unlink()
        # A line reaches the operating system as it is written, so that a kill of the process cannot lose it.
        self._stream = self._file.open("ab", buffering=0)
        self._torn = False
        self._unsynced: set[Path] = {folder, self._file}
        self._lock = Lock()  # checkpoints are written in another thread

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one record. Raises OSError where it cannot be written, as on a full disk."""
        if not metrics:
            return
        line = f"{to_json({'step': step, **metrics})}\n".encode()
        line, self._torn = b"\n" * self._torn + line, True
        if self._stream.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
        self._torn = False
        self._note(self._file)

    def text(self, step: int, name: str, text: str) -> None:
        """Append ``text`` to the file of its step."""
        escaped = _HEADING.sub(r"\\\g<0>", text)
        with self._sample(f"step-{step:06d}.txt").open("a", encoding="utf-8", newline="") as out:
            out.write(f"--- {name}\n{escaped}\n")

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Write each of ``files`` under the number of its step, and its name if it is not the only sample."""
        which = "" if name == "sample 0" else f"-{self._names.of(name)}"
        for status, content in files.items():
            self._sample(f"step-{step:06d}{which}{status}").write_bytes(content)

    def sync(self) -> None:
        """Make durable what was written, so that a loss of power cannot take it back."""
        with self._lock:
            unsynced, self._unsynced = self._unsynced, set()
        for path in sorted(unsynced, reverse=True):  # files before the folders that name them
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb+") as content:
                    os.fsync(content.fileno())

    def _sample(self, name: str) -> Path:
        """The path of a file of samples, in whose folder it will be."""
        if not self._samples.is_dir():
            self._samples.mkdir()
            self._note(self._samples.parent)
        self._note(self._samples, self._samples / name)
        return self._samples / name

    def _note(self, *paths: Path) -> None:
        with self._lock:
            self._unsynced.update(paths)

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        """Close the file."""
        self._stream.close()


def read_metrics(file: Path, at_most: int | None = None) -> list[dict[str, float]]:
    """The records of ``metrics.jsonl``; lines that are none, as the last one that a kill cut short, are left out, and
    null is NaN.

    Of a file of more than ``at_most`` lines all are read that are not of training metrics alone. Of the others at most
    half of so many are, and as many of those with the speed, evenly spread, and the last of each.
    """
    if not file.is_file():
        return []
    with file.open("rb") as content:
        lines = content if at_most is None else _thinned(content, at_most)
        return [record for record in map(_record, lines) if record is not None]


def _thinned(content: BinaryIO, at_most: int) -> list[bytes]:
    """The lines of ``content`` that `read_metrics` reads.

    Few lines are looked at: those of other metrics are searched for, and of training those at evenly spaced bytes.
    """
    head = list(islice(content, at_most + 1))
    if len(head) <= at_most:
        return head
    stride = 2 * content.seek(0, os.SEEK_END) // at_most + 1
    place = content.seek(0)
    found, last = dict[int, bytes](), dict[bytes, tuple[int, bytes]]()
    marks = {b'"train/loss"': 0, b'"speed/': 0}
    while block := content.read(_SMALL_BLOCK):
        block += content.readline()
        block = block[: block.rfind(b"\n") + 1]  # a kill may have cut the last line short
        others = _others(block)
        for name in marks:
            at = marks[name] - place
            while (at := block.find(name, max(at, 0))) >= 0:
                start, line = _line(block, at)
                if start not in others:
                    found[place + start] = line
                marks[name] = max(marks[name] + stride, place + start + len(line))
                at = marks[name] - place
            marks[name] = max(marks[name], place + len(block))
            if (at := block.rfind(name)) >= 0:
                start, line = _line(block, at)
                last[name] = place + start, line
        found |= {place + start: line for start, line in others.items()}
        place += len(block)
    found |= dict(last.values())
    return [found[start] for start in sorted(found)]


def _others(block: bytes) -> dict[int, bytes]:
    """The lines of ``block`` that are not of training metrics alone, by where they start."""
    found, at = dict[int, bytes](), 0
    while (match := _OTHERS.search(block, at)) is not None:
        start, line = _line(block, match.start())
        found[start], at = line, start + len(line)
    known = sum(b'"train/loss"' not in line for line in found.values())
    if block.count(b"\n") != block.count(b'"train/loss"') + known:
        start = 0
        for line in BytesIO(block):
            if b'"train/loss"' not in line:
                found[start] = line
            start += len(line)
    return found


def _line(block: bytes, at: int) -> tuple[int, bytes]:
    """Where the line of ``block`` starts that has the byte ``at``, and the line."""
    start, end = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at) + 1
    return start, block[start:end]


def _record(line: bytes) -> dict[str, float] | None:
    """The record that a ``line`` of the file is, None where it is none or was cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = from_json(line)
    except ValueError:
        return None
    if not is_mapping(found) or type(found.get("step")) is not int:
        return None
    known: dict[str, float] = {name: math.nan if value is None else value for name, value in found.items()}
    return known if all(type(value) in (int, float) for value in known.values()) else None


def last_values(file: Path, names: Sequence[str]) -> dict[str, float]:
    """The last recorded value of each of ``names``, as far as there is one; the file is read from its end."""
    found: dict[str, float] = {}
    for block in _blocks_from_end(file):
        for name in names:
            at = len(block)
            while name not in found and (at := block.rfind(f'"{name}":'.encode(), 0, at)) >= 0:
                start = block.rfind(b"\n", 0, at) + 1
                record = _record(block[start : block.find(b"\n", at) + 1])
                if record is not None and name in record:
                    found[name] = record[name]
                at = start
        if len(found) == len(names):
            break
    return found


def _blocks_from_end(file: Path) -> Iterator[bytes]:
    """The content of ``file`` in blocks of whole lines, the last one first."""
    if not file.is_file():
        return
    with file.open("rb") as content:
        end, rest = content.seek(0, os.SEEK_END), b""
        while end:
            start = max(0, end - _BLOCK)
            content.seek(start)
            block = content.read(end - start) + rest
            cut = block.find(b"\n") + 1 if start else 0
            rest, end = block[:cut], start
            yield block[cut:]


def read_samples(file: Path) -> list[tuple[str, str]]:
    """Name and text of each sample in a file of ``samples/``, as they were written."""
    with file.open(encoding="utf-8", newline="") as written:
        content = written.read()
    if content.partition("\n")[0].endswith("\r"):  # of an earlier version, on Windows
        content = content.replace("\r\n", "\n")
    _, *parts = _NAME.split(content)
    texts = (text.removeprefix("\n").removesuffix("\n") for text in parts[1::2])
    return [(name, _ESCAPED.sub("", text)) for name, text in zip(parts[::2], texts, strict=True)]


def _keep_until(file: Path, step: int, again: tuple[str, ...], say: Callable[[str], object]) -> None:
    """Keep the records up to ``step``, and of ``step`` itself those without a metric of the groups ``again``."""
    unfinished, bad, first = unfinished_name(file), 0, 0
    with file.open("rb") as lines, unfinished.open("wb") as kept:
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if record is None:
                # A kill may cut the last line short, which is no damage.
                bad, first = bad + line.endswith(b"\n"), first or number
            elif record["step"] < step or (
                record["step"] == step and not any(name.startswith(again) for name in record if again)
            ):
                # Earlier versions wrote NaN and Infinity, which are no JSON.
                written = b"NaN" not in line and b"Infinity" not in line
                kept.write(line if written else f"{to_json(record)}\n".encode())
        kept.flush()
        os.fsync(kept.fileno())
    if bad:
        aside = set_aside(file)
        say(f"{file}: {bad:,} lines, line {first:,} first, are no records and are left out; {aside.name} has them")
    os.replace(unfinished, file)
    sync_folder(file.parent)
