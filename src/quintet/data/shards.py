"""One work unit becomes one shard of a token store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quintet.data.sources.listing import Unit, documents
from quintet.data.store import Shard, array_file, size_problems, token_dtype, write_array, write_json
from quintet.errors import UserError
from quintet.tokenize import Tokenizer

_BATCH = 1 << 20  # characters in one call of the tokenizer: enough to occupy its threads, little enough to hold


@dataclass(frozen=True)
class Written:
    """A finished shard, with what was dropped on the way: empty documents, and files that are no text."""

    shard: Shard
    empty_documents: int
    left_out: tuple[str, ...]


def shard_name(index: int) -> str:
    """Name of the shard of work unit ``index``."""
    return f"shard-{index:06d}"


def write_shard(
    folder: Path, index: int, unit: Unit, tokenizer: Tokenizer, advance: Callable[[int], None] | None = None
) -> Written:
    """Tokenise ``unit`` into a shard in ``folder``; ``advance`` is told the UTF-8 bytes of each batch of documents.

    The arrays are written under temporary names and renamed, and the shard's json comes last: where it is, the shard is
    whole. Raises UserError with the place in the sources of what cannot be read or tokenised.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    tokens: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    size = empty = 0
    left_out: list[str] = []
    for texts in _batches(documents(unit, left_out)):
        ids = [array for array in _encoded(tokenizer, texts, unit) if array.size]
        empty += len(texts) - len(ids)
        tokens.append(_with_ends(ids, tokenizer.end_id, dtype))
        lengths.append(np.array([array.size + 1 for array in ids], dtype=np.int64))
        read = sum(map(_utf8_size, texts))
        size += read
        if advance is not None:
            advance(read)
    whole = np.concatenate(tokens) if tokens else np.empty(0, dtype)
    ends = np.cumsum(np.concatenate(lengths)) if lengths else np.empty(0, np.int64)
    digest = hashlib.blake2b(whole.data, digest_size=16)
    digest.update(ends.data)
    shard = Shard(shard_name(index), whole.size, ends.size, size, digest.hexdigest())
    written = Written(shard, empty, tuple(left_out))
    _write(folder, written, whole, ends)
    return written


def read_written(folder: Path, index: int, dtype: str) -> Written | None:
    """The shard of work unit ``index`` if it is finished and whole, else None."""
    file = folder / f"{shard_name(index)}.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    shard = Shard(**content["shard"])
    if size_problems(folder, shard, dtype):
        return None
    return Written(shard, content["empty_documents"], tuple(content["left_out"]))


def _write(folder: Path, written: Written, tokens: np.ndarray, ends: np.ndarray) -> None:
    for what, array in (("tokens", tokens), ("ends", ends)):
        file = array_file(folder, written.shard.name, what)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        write_array(unfinished, array)
        os.replace(unfinished, file)
    write_json(folder / f"{written.shard.name}.json", asdict(written))


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """``texts`` in lists of about a million characters."""
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= _BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], unit: Unit) -> list[np.ndarray]:
    try:
        return tokenizer.encode_batch(texts)
    except UserError as error:
        raise UserError(*(f"{unit.place}: {problem}" for problem in error.problems)) from None


def _with_ends(ids: Sequence[np.ndarray], end_id: int, dtype: np.dtype) -> np.ndarray:
    """All ``ids`` in one array, the end id behind each."""
    whole = np.empty(sum(array.size for array in ids) + len(ids), dtype=dtype)
    at = 0
    for array in ids:
        whole[at : at + array.size] = array
        at += array.size + 1
        whole[at - 1] = end_id
    return whole


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
