"""Metrics as JSON lines and samples as text files, in every run's folder: writing and reading."""

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
_HEADING = re.compile(r"^\\*--- ", re.MULTILINE)  # a line of a text that needs a backslash
_ESCAPED = re.compile(r"^\\(?=\\*--- )", re.MULTILINE)
_OTHERS = re.compile(rb'"(?:validation|benchmark|text|music)/')
_BLOCK, _SMALL_BLOCK = 4 << 20, 1 << 18  # bytes
_GROUPS = {"validation": "validation/", "text modelling": "text/", "benchmarks": "benchmark/"}


class JsonlTracker:
    """``metrics.jsonl`` with one object per record, and ``samples/`` with one file per step.

    In a file of samples the line ``--- name`` precedes each sample; a line of a text that starts like this has a
    backslash in front. A continued run drops the records and samples after the step it continues from, and of that step
    those that are ``due`` again, because the same steps write them again. Lines that are no records are dropped too:
    the file is set aside first, and ``say`` gets a line. A figure that is not finite is null in the file and NaN when
    it is read.
    """

    every_step: ClassVar[bool] = True

    def __init__(
        self, folder: Path, first_step: int, due: Sequence[str] = (), say: Callable[[str], object] = lambda _: None
    ) -> None:
        self._file = folder / "metrics.jsonl"
        self._samples = folder / "samples"
        self._names = UsableNames(file_name)
        for path, usable in ((self._file, self._file.is_file()), (self._samples, self._samples.is_dir())):
            if path.exists() and not usable:
                kind, aside = "file" if path == self._file else "folder", set_aside(path)
                say(f"{path}: is not a {kind}; it was renamed to {aside.name}")
        if self._file.exists():
            _keep_until(self._file, first_step, tuple(_GROUPS[name] for name in due if name in _GROUPS), say)
        last_sample = first_step - ("samples" in due)
        for sample in self._samples.glob("step-*.*"):
            step = re.match(r"step-(\d+)", sample.name)
            if step is not None and int(step[1]) > last_sample:
                sample.unlink()
        # Unbuffered, so that a kill of the process loses no line.
        self._stream = self._file.open("ab", buffering=0)
        self._torn = False
        self._unsynced: set[Path] = {folder, self._file}
        self._lock = Lock()  # checkpoints are written in another thread

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a record. Raises OSError if it cannot be written, as on a full disk."""
        if not metrics:
            return
        line = f"{to_json({'step': step, **metrics})}\n".encode()
        line, self._torn = b"\n" * self._torn + line, True
        if self._stream.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))
        self._torn = False
        self._note(self._file)

    def text(self, step: int, name: str, text: str) -> None:
        """Append ``text`` to the samples of its step."""
        escaped = _HEADING.sub(r"\\\g<0>", text)
        with self._sample(f"step-{step:06d}.txt").open("a", encoding="utf-8", newline="") as out:
            out.write(f"--- {name}\n{escaped}\n")

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Write ``files`` by the number of their step, and their name if it is not the only sample."""
        which = "" if name == "sample 0" else f"-{self._names.of(name)}"
        for ending, content in files.items():
            self._sample(f"step-{step:06d}{which}{ending}").write_bytes(content)

    def sync(self) -> None:
        """Write everything to the disk, so that a loss of power loses nothing."""
        with self._lock:
            unsynced, self._unsynced = self._unsynced, set()
        for path in sorted(unsynced, reverse=True):  # files before the folders that name them
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb+") as content:
                    os.fsync(content.fileno())

    def _sample(self, name: str) -> Path:
        """Return the path of a file of samples; its folder exists afterwards."""
        if not self._samples.is_dir():
            self._samples.mkdir()
            self._note(self._samples.parent)
        self._note(self._samples, self._samples / name)
        return self._samples / name

    def _note(self, *paths: Path) -> None:
        with self._lock:
            self._unsynced.update(paths)

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        self._stream.close()


def read_metrics(file: Path, at_most: int | None = None) -> list[dict[str, float]]:
    """Read the records of ``metrics.jsonl``, with NaN for null.

    Invalid lines are skipped, such as a last line cut short by a kill. Of a file with more than ``at_most`` lines, all
    records are read that have other than training metrics. Of the rest at most ``at_most`` / 2 are read, and as many of
    those with the speed: evenly spread, and the last of each.
    """
    if not file.is_file():
        return []
    with file.open("rb") as content:
        lines = content if at_most is None else _thinned(content, at_most)
        return [record for record in map(_record, lines) if record is not None]


def _thinned(content: BinaryIO, at_most: int) -> list[bytes]:
    """Return the lines of ``content`` that `read_metrics` reads.

    Only few lines are looked at: lines with other metrics are searched for, and training lines are taken at evenly
    spaced bytes.
    """
    head = list(islice(content, at_most + 1))
    if len(head) <= at_most:
        return head
    stride = 2 * content.seek(0, os.SEEK_END) // at_most + 1
    place = content.seek(0)
    lines, last = dict[int, bytes](), dict[bytes, tuple[int, bytes]]()
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
                    lines[place + start] = line
                marks[name] = max(marks[name] + stride, place + start + len(line))
                at = marks[name] - place
            marks[name] = max(marks[name], place + len(block))
            if (at := block.rfind(name)) >= 0:
                start, line = _line(block, at)
                last[name] = place + start, line
        lines |= {place + start: line for start, line in others.items()}
        place += len(block)
    lines |= dict(last.values())
    return [lines[start] for start in sorted(lines)]


def _others(block: bytes) -> dict[int, bytes]:
    """Return the lines of ``block`` that have other than training metrics, by their first byte."""
    lines, at = dict[int, bytes](), 0
    while (match := _OTHERS.search(block, at)) is not None:
        start, line = _line(block, match.start())
        lines[start], at = line, start + len(line)
    known = sum(b'"train/loss"' not in line for line in lines.values())
    if block.count(b"\n") != block.count(b'"train/loss"') + known:
        start = 0
        for line in BytesIO(block):
            if b'"train/loss"' not in line:
                lines[start] = line
            start += len(line)
    return lines


def _line(block: bytes, at: int) -> tuple[int, bytes]:
    """Return the first byte of the line of ``block`` that contains the byte ``at``, and the line."""
    start, end = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at) + 1
    return start, block[start:end]


def _record(line: bytes) -> dict[str, float] | None:
    """Return the record in ``line``, None if it is no record or was cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        content = from_json(line)
    except ValueError:
        return None
    if not is_mapping(content) or type(content.get("step")) is not int:
        return None
    record: dict[str, float] = {name: math.nan if value is None else value for name, value in content.items()}
    return record if all(type(value) in (int, float) for value in record.values()) else None


def last_values(file: Path, names: Sequence[str]) -> dict[str, float]:
    """Return the last recorded value of each of ``names`` that has one, reading the file from its end."""
    values: dict[str, float] = {}
    for block in _blocks_from_end(file):
        for name in names:
            at = len(block)
            while name not in values and (at := block.rfind(f'"{name}":'.encode(), 0, at)) >= 0:
                start = block.rfind(b"\n", 0, at) + 1
                record = _record(block[start : block.find(b"\n", at) + 1])
                if record is not None and name in record:
                    values[name] = record[name]
                at = start
        if len(values) == len(names):
            break
    return values


def _blocks_from_end(file: Path) -> Iterator[bytes]:
    """Yield the content of ``file`` in blocks of whole lines, the last block first."""
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
    """Return name and text of each sample in a file of ``samples/``."""
    with file.open(encoding="utf-8", newline="") as written:
        content = written.read()
    if content.partition("\n")[0].endswith("\r"):  # written by an earlier version on Windows
        content = content.replace("\r\n", "\n")
    _, *parts = _NAME.split(content)
    texts = (text.removeprefix("\n").removesuffix("\n") for text in parts[1::2])
    return [(name, _ESCAPED.sub("", text)) for name, text in zip(parts[::2], texts, strict=True)]


def _keep_until(file: Path, step: int, again: tuple[str, ...], say: Callable[[str], object]) -> None:
    """Keep the records up to ``step``, except those of ``step`` with a metric of the groups ``again``."""
    unfinished, bad, first = unfinished_name(file), 0, 0
    with file.open("rb") as lines, unfinished.open("wb") as kept:
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if record is None:
                # A last line cut short by a kill is no damage.
                bad, first = bad + line.endswith(b"\n"), first or number
            elif record["step"] < step or (
                record["step"] == step and not any(name.startswith(again) for name in record if again)
            ):
                # Earlier versions wrote NaN and Infinity, which are not JSON.
                valid = b"NaN" not in line and b"Infinity" not in line
                kept.write(line if valid else f"{to_json(record)}\n".encode())
        kept.flush()
        os.fsync(kept.fileno())
    if bad:
        aside = set_aside(file)
        say(f"{file}: {bad:,} lines, line {first:,} first, are no records and are dropped; {aside.name} has them")
    os.replace(unfinished, file)
    sync_folder(file.parent)
