"""The shard of a token store that a work unit becomes: its documents are cleaned, encoded and written."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.cleaning import CleaningConfig
from quintet.data.cleaning import NO_CLEANING, clean, signer, text_of
from quintet.data.manifest import Shard, validated, write_json
from quintet.data.sources.base import Document, Report, TextParts, TextPiece, TokenIds, WorkUnit
from quintet.data.sources.files import shown
from quintet.data.store import ArrayWriter, array_file, size_problems, token_dtype
from quintet.errors import UserError
from quintet.files import from_json, unfinished_name
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import NO_END, Spans, cut_text
from quintet.tokenize.bounds import begin_ids
from quintet.tokenize.huggingface import HuggingFaceTokenizer

_BATCH = 1 << 20  # characters in one call of the tokenizer: enough for its threads, few enough for memory
_LAST = 64  # ids at the end of a document among which its end is looked for


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard; the documents that were ``dropped``, by reason; unreadable files; and what settings ``matched``
    (see `Report`), with the number of documents without a loss as "unlearnt"."""

    shard: Shard
    dropped: dict[str, int]
    left_out: tuple[str, ...]
    matched: dict[str, int] = field(default_factory=dict[str, int])


def shard_name(index: int) -> str:
    """Return the name of the shard of work unit ``index``."""
    return f"shard-{index:06d}"


def write_shard(
    folder: Path,
    index: int,
    unit: WorkUnit[Any],
    tokenizer: Tokenizer,
    advance: Callable[[int], None] | None = None,
    cleaning: CleaningConfig = NO_CLEANING,
) -> FinishedShard:
    """Write the documents of ``unit`` that ``cleaning`` keeps as a shard into ``folder``. ``advance`` gets the UTF-8
    bytes of each batch of documents.

    The arrays are written under temporary names and renamed. The json of the shard is written last: if it exists, the
    shard is complete. Memory is bounded by a batch or by the longest document of the unit. Raises UserError with the
    location of what cannot be read or tokenised.
    """
    report = Report()
    arrays, sign = _Arrays(folder, shard_name(index), tokenizer), signer(cleaning)
    try:
        documents = unit.documents(report, tokenizer)
        if cleaning != NO_CLEANING:
            documents = clean(_join_pieces(documents), cleaning, report.dropped)
        for batch in _batches(_cut_long(documents) if tokenizer.can_cut else documents):
            size = sum(map(_size, batch))
            for document, encoded in zip(batch, _encode(tokenizer, batch, unit), strict=True):
                if arrays.add(encoded) and sign is not None:
                    arrays.sign(sign(text_of(document)))
            if advance is not None:
                advance(size)
        finished = arrays.finish(report)
    finally:
        arrays.close()
    write_json(folder / f"{finished.shard.name}.json", asdict(finished))
    return finished


def read_shard(folder: Path, index: int, dtype: str) -> FinishedShard | None:
    """Return the shard of work unit ``index``, None if it is not finished, or damaged."""
    file = folder / f"{shard_name(index)}.json"
    if not file.is_file():
        return None
    try:
        finished = validated(FinishedShard, from_json(file.read_bytes()))
    except ValueError:
        return None
    return None if size_problems(folder, finished.shard, dtype) else finished


class _Arrays:
    """The arrays of a shard while they are written."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self._folder, self._name, self._tokenizer = folder, name, tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._files: dict[str, ArrayWriter] = {}
        self._unfinished: dict[str, Path] = {}
        self._tokens = self._begin("tokens", self._dtype)
        self._digest = hashlib.blake2b(digest_size=16)
        self._mask_digest = hashlib.blake2b(digest_size=16)
        self._hash = hashlib.blake2b(digest_size=8)
        self._last = np.empty(0, dtype=self._dtype)
        self._ends: list[int] = []
        self._hashes: list[int] = []
        self._count: int = 0
        self._begun: int = 0
        self._bytes = 0
        self._permutations = 0
        self._last_has_loss = True
        self._without_end = 0
        self._has_loss, self._without_loss = False, 0  # the current document, and the number of documents
        self.dropped = Counter[str]()

    def add(self, piece: _Encoded) -> bool:
        """Append ``piece``, and the end of its document if it is the last piece.

        Returns True if it completes a document that is not empty.
        """
        if piece.ids.size:
            if piece.is_text and self._count == self._begun and (begin := begin_ids(self._tokenizer)):
                self._append(np.array(begin), None if piece.loss_mask is None else np.zeros(len(begin), dtype=bool))
            self._append(piece.ids, piece.loss_mask)
            self._bytes += piece.bytes
        if piece.continues:
            return False
        if self._count == self._begun:
            self.dropped["empty"] += 1
            return False
        end = self._tokenizer.end_id
        if end != NO_END and self._last[-1] != end:
            if self._has_ended(piece.ends):
                self._without_end += 1
            else:
                self._append(np.array([end]), np.array([self._last_has_loss and piece.learn_end]))
        self._without_loss, self._has_loss = self._without_loss + (not self._has_loss), False
        self._ends.append(self._count)
        self._hashes.append(int.from_bytes(self._hash.digest(), "little"))
        self._hash, self._begun = hashlib.blake2b(digest_size=8), self._count
        return True

    def _has_ended(self, ends: frozenset[int]) -> bool:
        """Return True if the document ends with one of ``ends``, with or without white space after it."""
        if not ends:
            return False
        inside = np.flatnonzero(~self._white[self._last])
        return bool(inside.size) and int(self._last[inside[-1]]) in ends

    @cached_property
    def _white(self) -> np.ndarray:
        """True for ids of white space, bool [vocab_size]."""
        return np.array([piece.isspace() for piece in self._tokenizer.pieces.table], dtype=bool)

    def sign(self, signature: np.ndarray) -> None:
        """Append the ``signature`` of the last document, uint32 [numbers]."""
        if "minhash" not in self._files:
            self._begin("minhash", signature.dtype)
        self._permutations = signature.size
        self._files["minhash"].append(signature)

    def finish(self, report: Report) -> FinishedShard:
        """Close and rename the files."""
        ends = np.array(self._ends, dtype=np.int64)
        self._begin("ends", ends.dtype).append(ends)
        self._begin("hashes", np.dtype(np.uint64)).append(np.array(self._hashes, dtype=np.uint64))
        self._digest.update(ends.data)
        masked = "learnt" in self._files
        if masked:
            self._digest.update(self._mask_digest.digest())
        checksums = {what: writer.checksum for what, writer in self._files.items()}
        for what, writer in self._files.items():
            writer.close()
            os.replace(self._unfinished[what], array_file(self._folder, self._name, what))
        self._files.clear()
        digest = self._digest.hexdigest()
        counts, numbers = (self._count, ends.size, self._bytes), (self._permutations, self._without_end)
        shard = Shard(self._name, *counts, digest, masked, *numbers, checksums)
        dropped, left_out = self.dropped + report.dropped, tuple(map(shown, report.left_out))
        matched = report.matched + Counter(unlearnt=self._without_loss)
        return FinishedShard(shard, dict(dropped), left_out, dict(matched))

    def close(self) -> None:
        """Close the files of a shard that was not finished."""
        for writer in self._files.values():
            writer.abandon()

    def _append(self, ids: np.ndarray, loss_mask: np.ndarray | None) -> None:
        ids = ids.astype(self._dtype, copy=False)
        if loss_mask is not None and not loss_mask.all() and "learnt" not in self._files:
            self._begin("learnt", np.dtype(bool))
            for start in range(0, self._count, _BATCH):  # all ids so far have a loss
                self._append_mask(np.ones(min(_BATCH, self._count - start), dtype=bool))
        if "learnt" in self._files:
            self._append_mask(np.ones(ids.size, dtype=bool) if loss_mask is None else loss_mask)
        self._last_has_loss = loss_mask is None or bool(loss_mask[-1])
        self._has_loss = self._has_loss or loss_mask is None or bool(loss_mask.any())
        self._tokens.append(ids)
        self._digest.update(np.ascontiguousarray(ids).data)
        self._hash.update(np.ascontiguousarray(ids).data)
        self._count += ids.size
        self._last = ids[-_LAST:]

    def _append_mask(self, mask: np.ndarray) -> None:
        self._files["learnt"].append(mask)
        self._mask_digest.update(np.ascontiguousarray(mask).data)

    def _begin(self, what: str, dtype: np.dtype) -> ArrayWriter:
        self._unfinished[what] = unfinished_name(array_file(self._folder, self._name, what))
        self._files[what] = ArrayWriter(self._unfinished[what], dtype)
        return self._files[what]


@dataclass(frozen=True)
class _Encoded:
    """The ids of a document, or of a piece of one that ``continues``, of ``bytes`` bytes of UTF-8 text.

    ``ends`` and ``learn_end`` are those of the document. ``is_text`` is False for documents of token ids and of
    templates, which have their own begin ids.
    """

    ids: np.ndarray
    loss_mask: np.ndarray | None
    bytes: int
    continues: bool = False
    ends: frozenset[int] = frozenset()
    learn_end: bool = True
    is_text: bool = True


def _join_pieces(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield ``documents`` with the pieces of a text joined, for rules about whole texts."""
    held: list[str] = []
    for document in documents:
        if not isinstance(document, TextPiece):
            yield document
            continue
        held.append(document.text)
        if not document.continues:
            yield "".join(held)
            held = []


def _cut_long(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield ``documents`` with long texts in pieces: to encode a text takes memory of 25 times its size."""
    for document in documents:
        if not isinstance(document, str) or len(document) <= 2 * _BATCH:
            yield document
            continue
        parts = cut_text(document, _BATCH)
        last = next(parts)
        for part in parts:
            yield TextPiece(last, True, document)
            last = part
        yield TextPiece(last, False, document)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield ``documents`` in lists of about a million characters."""
    batch: list[Document] = []
    length = 0
    for document in documents:
        batch.append(document)
        length += _length(document)
        if length >= _BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: Sequence[Document], unit: WorkUnit[Any]) -> Iterator[_Encoded]:
    """Yield ``batch`` as ids, in its order. Texts are encoded together, which is faster."""
    try:
        texts = [document for document in batch if isinstance(document, str | TextPiece)]
        plain = iter(tokenizer.encode_batch([text if isinstance(text, str) else text.text for text in texts]))
        parts = iter(_encode_parts(tokenizer, [document for document in batch if isinstance(document, TextParts)]))
        for document in batch:
            if isinstance(document, TokenIds):
                _check_ids(document, tokenizer)
                size = int(_byte_lengths(tokenizer)[document.ids].sum())
                how = (document.continues, document.ends, document.learn_end)
                yield _Encoded(document.ids, document.loss_mask, size, *how, is_text=False)
            elif isinstance(document, TextParts):
                yield next(parts)
            else:
                continues = isinstance(document, TextPiece) and document.continues
                yield _Encoded(next(plain), None, _size(document), continues)
    except UserError as error:
        raise UserError(*(f"{unit.location}: {problem}" for problem in error.problems)) from None


@lru_cache(maxsize=1)
def _byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Return the bytes of each id, int64 [vocab_size]; cached because making the table takes longer than its use."""
    return tokenizer.bytes_per_token()


def _encode_parts(tokenizer: Tokenizer, documents: Sequence[TextParts]) -> Iterator[_Encoded]:
    """Yield ``documents``, each encoded as one text: a tokenizer may treat the beginning of a text in its own way."""
    texts = [document.whole for document in documents]
    if any(document.template for document in documents):  # then all, since they are from one source
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        encoded = tokenizer.encode_spans(texts, template=True)
    else:
        encoded = tokenizer.encode_spans(texts)
    for document, spans in zip(documents, encoded, strict=True):
        loss_mask = _loss_mask(document, spans)
        yield _Encoded(spans.ids, loss_mask, _size(document), ends=document.ends, is_text=not document.template)


def _loss_mask(document: TextParts, spans: Spans) -> np.ndarray:
    """Return True for ids with a character of a text that has a loss: bool [tokens]."""
    borders = np.cumsum([len(text) for text in document.texts])
    # An id without characters belongs to the text of the next character.
    first = np.minimum(np.searchsorted(borders, spans.starts, side="right"), borders.size - 1)
    last = np.searchsorted(borders, np.maximum(spans.stops, spans.starts + 1), side="left")
    loss_mask = [has_loss and text != "" for has_loss, text in zip(document.loss_mask, document.texts, strict=True)]
    before = np.cumsum([0, *loss_mask])
    return before[np.minimum(last, borders.size - 1) + 1] > before[first]


def _check_ids(document: TokenIds, tokenizer: Tokenizer) -> None:
    wrong = np.flatnonzero((document.ids < 0) | (document.ids >= tokenizer.vocab_size))
    if wrong.size:
        index = int(wrong[0])
        raise UserError(
            f"{document.location}: token {index} is {int(document.ids[index])}, and the tokenizer has "
            f"{tokenizer.vocab_size} ids; name the tokenizer that the tokens were made with"
        )


def _length(document: Document) -> int:
    """Return the number of characters or of ids."""
    match document:
        case str():
            return len(document)
        case TextPiece():
            return len(document.text)
        case TextParts():
            return sum(map(len, document.texts))
        case TokenIds():
            return document.ids.size


def _size(document: Document) -> int:
    """Return the bytes of a text in UTF-8, or of ids in memory."""
    match document:
        case str():
            return len(document) if document.isascii() else len(document.encode("utf-8"))
        case TextPiece():
            return _size(document.text)
        case TextParts():
            return sum(map(_size, document.texts))
        case TokenIds():
            return document.ids.nbytes
