"""The manifest of a token store: what it says of itself, in `manifest.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quintet.data.sources.check import MANIFEST, no_store
from quintet.errors import UserError
from quintet.files import write_text

FORMAT = 2


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
    """How many documents of a store are not to be used, with how many tokens, and a digest of which."""

    documents: int = 0
    tokens: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

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


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write ``content`` into ``file``, which is never half there."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False))
