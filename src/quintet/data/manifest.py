"""The manifest of a token store, `manifest.json`, and which of a store's files were found whole."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quintet.errors import UserError
from quintet.files import write_text
from quintet.tokenize.base import digest

MANIFEST = "manifest.json"
FORMAT = 2
_PARTS = ("midi_", "notes_", "padding_")  # reasons that count parts of documents and of files
_READ = 1 << 23  # bytes, a multiple of what a value takes
Check = Callable[[Path], str | None]


@dataclass(frozen=True)
class Shard:
    """Counts of one shard. ``bytes`` is UTF-8 text. If it is ``masked`` it says token by token what is learnt.
    ``digest`` is of its tokens, ends and mask; ``permutations`` are the numbers in a document's signature, and
    ``without_end`` counts documents that end by themselves and not with the end id. ``checksums`` has the CRC-32 of the
    values of each array by its name; in stores of earlier versions there is none."""

    name: str
    tokens: int
    documents: int
    bytes: int
    digest: str
    masked: bool = False
    permutations: int = 0
    without_end: int = 0
    checksums: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """The documents of a store that are not to be used: how many, with how many tokens, and a digest of which."""

    documents: int = 0
    tokens: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Manifest:
    """The facts that a store keeps about itself.

    ``key`` follows from the source as it was, the way it was read, and the tokenizer; ``tokenizer`` is the tokenizer's
    fingerprint and ``tokenizer_config`` the part of the run file it was made from. ``dropped`` counts documents that
    were not kept, by the reason; those of them that are in the shards nevertheless are ``unused``. ``left_out`` counts
    files that are no text and ``left_out_files`` names the first of them. ``matched`` counts what settings of the
    source found, and documents in which nothing is learnt. ``made_with`` are versions of Quintet and of libraries.
    """

    key: str
    description: str
    tokenizer: str
    tokenizer_config: dict[str, Any]
    vocab_size: int
    dtype: str
    tokens: int
    documents: int
    bytes: int
    dropped: dict[str, int]
    left_out: int
    left_out_files: tuple[str, ...]
    shards: tuple[Shard, ...]
    unused: Dropped = Dropped()
    matched: dict[str, int] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, at once and whole."""
        write_json(folder / MANIFEST, asdict(self))


def no_store(folder: Path) -> str:
    """The message about a folder without a manifest."""
    return f"{folder} holds no {MANIFEST} and so no finished token store; write one with quintet prepare --output"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in ``folder``. Raises UserError when there is none, or one of another format."""
    file = folder / MANIFEST
    if not file.is_file():
        raise UserError(no_store(folder))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{file}: is no manifest of a token store; name the folder that quintet prepare wrote")
    if content["format"] != FORMAT:
        raise UserError(
            f"{file}: has format {content['format']}, this version of Quintet reads {FORMAT}; prepare the store again"
        )
    try:
        shards = tuple(Shard(**shard) for shard in content.pop("shards"))
        unused, names = Dropped(**content.pop("unused", {})), tuple(content.pop("left_out_files"))
        manifest = Manifest(shards=shards, left_out_files=names, unused=unused, **content)
    except (TypeError, KeyError) as error:
        raise _damaged(file, str(error)) from None
    for name in ("tokens", "documents", "bytes"):
        if sum(getattr(shard, name) for shard in shards) != getattr(manifest, name):
            raise _damaged(file, f"its shards do not hold {getattr(manifest, name)} {name}")
    return manifest


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file}: is damaged ({why}): delete the folder and run prepare again")


def dropped_lines(dropped: Mapping[str, int], kept: int) -> Iterator[str]:
    """A line for each reason in ``dropped``, beside ``kept`` documents."""
    documents = {reason: count for reason, count in dropped.items() if not reason.startswith(_PARTS)}
    total = kept + sum(documents.values())
    for reason, count in sorted(dropped.items()):
        whole = f"dropped: {count:,} of {total:,} documents ({reason})"
        yield whole if reason in documents else f"passed over: {count:,} ({reason})"


def left_out_files(count: int, first: tuple[str, ...]) -> Iterator[str]:
    """A line on files that cannot be read, with the names of the first."""
    if count:
        names = ", ".join(first[:3]) + (", …" if count > 3 else "")
        yield f"left out: {count:,} files that cannot be read ({names})"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write ``content`` into ``file``, which is never half there."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False))


def find_damage(folder: Path, checks: Mapping[str, Check]) -> list[str]:
    """A line for each problem that the ``checks`` of the files of ``folder``, by name, find.

    A file that passed is not read again while its size, time and inode stay. What passed is noted in the home, by the
    path of the folder, so that the folder may be read-only; where it cannot be noted, it is checked every time.
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
    """The problem with the values in ``file`` from byte ``start`` on, whose CRC-32 is ``checksum``; None for nothing.
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
