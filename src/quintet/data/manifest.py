"""The manifest of a token store, `manifest.json`, which describes the content of each of its files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from quintet.config.keypath import is_mapping
from quintet.errors import UserError, one_line
from quintet.files import from_json, write_text
from quintet.tokenize.base import digest

MANIFEST = "manifest.json"
FORMAT = 2
_PARTS = ("midi_", "notes_", "padding_")  # reasons that count parts of documents and of files
_CHECKSUM = "checksum"
_STRICT = ConfigDict(extra="forbid")

Count = Annotated[int, Field(ge=0)]
Known = TypeVar("Known")
_ArrayName = Annotated[str, Field(pattern="^(tokens|ends|hashes|learnt|minhash)$")]


@dataclass(frozen=True)
class Shard:
    """Counts of one shard.

    ``bytes`` is the size of the text in UTF-8. A ``masked`` shard has a loss mask. ``digest`` is of its tokens, ends
    and mask. ``permutations`` is the length of a document's signature. ``without_end`` counts documents that end with
    another id than the end id. ``checksums`` has the CRC-32 of the values of each array by its name; it is empty in
    stores of earlier versions.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: Annotated[str, Field(pattern=r"^shard-[0-9]+$")]
    tokens: Count
    documents: Count
    bytes: Count
    digest: str
    masked: bool = False
    permutations: Count = 0
    without_end: Count = 0
    checksums: dict[_ArrayName, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Dropped:
    """The stored documents that are not to be used: their number, their tokens, and a digest of their indices."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    documents: Count = 0
    tokens: Count = 0
    digest: str = ""


@dataclass(frozen=True)
class Manifest:
    """The facts that a store keeps about itself.

    ``key`` depends on the source as it was, the way it was read, and the tokenizer. ``tokenizer`` is the tokenizer's
    fingerprint, and ``tokenizer_config`` its section of the run file. ``dropped`` counts documents that were not kept,
    by reason; those of them that are in the shards are ``unused``. ``left_out`` counts unreadable files, and
    ``left_out_files`` names the first of them. ``matched`` counts what settings of the source found, and documents
    without a loss. ``made_with`` has the versions of Quintet and of libraries.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    key: str
    description: str
    tokenizer: str
    tokenizer_config: dict[str, Any]
    vocab_size: Annotated[int, Field(ge=1)]
    dtype: Annotated[str, Field(pattern="^<u[24]$")]
    tokens: Count
    documents: Count
    bytes: Count
    dropped: dict[str, int]
    left_out: Count
    left_out_files: tuple[str, ...]
    shards: tuple[Shard, ...]
    unused: Dropped = Dropped()
    matched: dict[str, int] = field(default_factory=dict[str, int])
    made_with: dict[str, str] = field(default_factory=dict[str, str])
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write `manifest.json` atomically, with a checksum of its content."""
        content = asdict(self)
        write_json(folder / MANIFEST, {**content, _CHECKSUM: _checksum(content)})


def no_store(folder: Path) -> str:
    """Return the message about a folder without a manifest."""
    return f"{folder} holds no {MANIFEST} and so no finished token store; write one with quintet prepare --output"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the store in ``folder``. Raises UserError when there is none of this format."""
    file = folder / MANIFEST
    if not file.is_file():
        raise UserError(no_store(folder))
    try:
        content = from_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(file, one_line(error)) from None
    if not is_mapping(content) or "format" not in content:
        raise UserError(f"{file}: is no manifest of a token store; name the folder that quintet prepare wrote")
    if content["format"] != FORMAT:
        raise UserError(
            f"{file}: has format {content['format']}, this version of Quintet reads {FORMAT}; prepare the store again"
        )
    checksum = content.pop(_CHECKSUM, None)  # earlier versions wrote none
    if checksum is not None and checksum != _checksum(content):
        raise _damaged(file, "it does not say what was written: another checksum")
    try:
        manifest = validated(Manifest, content)
    except ValueError as error:
        raise _damaged(file, str(error)) from None
    for name in ("tokens", "documents", "bytes"):
        if sum(getattr(shard, name) for shard in manifest.shards) != getattr(manifest, name):
            raise _damaged(file, f"its shards do not hold {getattr(manifest, name)} {name}")
    return manifest


def validated(kind: type[Known], content: Any) -> Known:
    """Return the value of the dataclass ``kind`` that ``content``, parsed JSON, describes. Raises ValueError with the
    first fault if it describes none."""
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _checksum(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True, ensure_ascii=True))


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file}: is damaged ({why}): delete the folder and run prepare again")


def dropped_lines(dropped: Mapping[str, int], kept: int) -> Iterator[str]:
    """Yield a line for each reason in ``dropped``, when ``kept`` documents were kept."""
    documents = {reason: count for reason, count in dropped.items() if not reason.startswith(_PARTS)}
    total = kept + sum(documents.values())
    for reason, count in sorted(dropped.items()):
        if reason in documents:
            yield f"dropped: {count:,} of {total:,} documents ({reason})"
        else:
            yield f"passed over: {count:,} ({reason})"


def left_out_files(count: int, first: tuple[str, ...]) -> Iterator[str]:
    """Yield a line on files that cannot be read, if there are any, with the names of the ``first``."""
    if count:
        names = ", ".join(first[:3]) + (", …" if count > 3 else "")
        yield f"left out: {count:,} files that cannot be read ({names})"


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write ``content`` into ``file`` atomically."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False))
