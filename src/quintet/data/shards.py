"""One work unit becomes one shard of a token store."""

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
from quintet.data.cleaning import kept, signer, text_of
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

_BATCH = 1 << 20  # characters in one call of the tokenizer: enough to occupy its threads, little enough to hold
_LAST = 64  # ids at the end of a document among which the one that ends it is looked for
_ALL = CleaningConfig()


@dataclass(frozen=True)
class Written:
    """A finished shard, with what was dropped on the way, by the reason, files that are no text, and what settings
    found (see `Report`), among them documents in which nothing is learnt."""

    shard: Shard
    dropped: dict[str, int]
    left_out: tuple[str, ...]
    matched: dict[str, int] = field(default_factory=dict[str, int])


def shard_name(index: int) -> str:
    """Name of the shard of work unit ``index``."""
    return f"shard-{index:06d}"


def write_shard(
    folder: Path,
    index: int,
    unit: WorkUnit[Any],
    tokenizer: Tokenizer,
    advance: Callable[[int], None] | None = None,
    cleaning: CleaningConfig = _ALL,
) -> Written:
    """Tokenise ``unit`` into a shard in ``folder``; ``advance`` is told the UTF-8 bytes of each batch of documents.

    What the rules of ``cleaning`` drop is not in the shard; with signatures, later ones can be compared with earlier.

    The arrays are written under temporary names and renamed, and the shard's json comes last: where it is, the shard is
    whole. Memory is bounded by a batch or by the longest document of the unit. Raises UserError with the place in the
    sources of what cannot be read or tokenised.
    """
    report = Report()
    arrays, sign = _Arrays(folder, shard_name(index), tokenizer), signer(cleaning)
    try:
        found = unit.documents(report, tokenizer)
        if cleaning != _ALL:
            found = kept(_whole(found), cleaning, report.dropped)
        for batch in _batches(_cut(found) if tokenizer.can_cut else found):
            read = sum(map(_size, batch))
            for document, encoded in zip(batch, _encoded(tokenizer, batch, unit), strict=True):
                if arrays.add(encoded) and sign is not None:
                    arrays.sign(sign(text_of(document)))
            if advance is not None:
                advance(read)
        written = arrays.finish(report)
    finally:
        arrays.close()
    write_json(folder / f"{written.shard.name}.json", asdict(written))
    return written


def read_written(folder: Path, index: int, dtype: str) -> Written | None:
    """The shard of work unit ``index`` if it is finished and whole, else None."""
    file = folder / f"{shard_name(index)}.json"
    if not file.is_file():
        return None
    try:
        written = validated(Written, from_json(file.read_bytes()))
    except ValueError:  # it is damaged, and the shard is made anew
        return None
    return None if size_problems(folder, written.shard, dtype) else written


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
        self._learns, self._unlearnt = False, 0
        self.dropped = Counter[str]()

    def add(self, piece: _Encoded) -> bool:
        """Put ``piece`` after what is there, and the end of its document if it is the last.

        Returns whether a document that is not empty is whole now.
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
        self._unlearnt, self._learns = self._unlearnt + (not self._learns), False
        self._ends.append(self._count)
        self._hashes.append(int.from_bytes(self._hash.digest(), "little"))
        self._hash, self._begun = hashlib.blake2b(digest_size=8), self._count
        return True

    def _has_ended(self, ends: frozenset[int]) -> bool:
        """True if the document ends with one of ``ends``, and perhaps with white space after it."""
        if not ends:
            return False
        inside = np.flatnonzero(~self._white[self._last])
        return bool(inside.size) and int(self._last[inside[-1]]) in ends

    @cached_property
    def _white(self) -> np.ndarray:
        """For each id: True if it is white space, bool [vocab_size]."""
        return np.array([piece.isspace() for piece in self._tokenizer.pieces.table], dtype=bool)

    def sign(self, signature: np.ndarray) -> None:
        """Keep the ``signature`` of the last document, uint32 [numbers]."""
        if "minhash" not in self._files:
            self._begin("minhash", signature.dtype)
        self._permutations = signature.size
        self._files["minhash"].append(signature)

    def finish(self, report: Report) -> Written:
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
        matched = report.matched + Counter(unlearnt=self._unlearnt)
        return Written(shard, dict(self.dropped + report.dropped), tuple(map(shown, report.left_out)), dict(matched))

    def close(self) -> None:
        """Let go of the files, also where the shard was not finished."""
        for writer in self._files.values():
            writer.abandon()

    def _append(self, ids: np.ndarray, loss_mask: np.ndarray | None) -> None:
        ids = ids.astype(self._dtype, copy=False)
        if loss_mask is not None and not loss_mask.all() and "learnt" not in self._files:
            self._begin("learnt", np.dtype(bool))
            for start in range(0, self._count, _BATCH):  # all that stands before is learnt
                self._append_mask(np.ones(min(_BATCH, self._count - start), dtype=bool))
        if "learnt" in self._files:
            self._append_mask(np.ones(ids.size, dtype=bool) if loss_mask is None else loss_mask)
        self._last_has_loss = loss_mask is None or bool(loss_mask[-1])
        self._learns = self._learns or loss_mask is None or bool(loss_mask.any())
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
    """A document, or a piece of one that ``continues``, as tokens. ``bytes`` is UTF-8 text; ``ends`` and ``learn_end``
    are those of the document. ``is_text`` unless it came as tokens or from a template, which write themselves what they
    begin with."""

    ids: np.ndarray
    loss_mask: np.ndarray | None
    bytes: int
    continues: bool = False
    ends: frozenset[int] = frozenset()
    learn_end: bool = True
    is_text: bool = True


def _whole(found: Iterable[Document]) -> Iterator[Document]:
    """``found`` with texts in one piece, as rules judge them as a whole."""
    held: list[str] = []
    for document in found:
        if not isinstance(document, TextPiece):
            yield document
            continue
        held.append(document.text)
        if not document.continues:
            yield "".join(held)
            held = []


def _cut(found: Iterable[Document]) -> Iterator[Document]:
    """``found`` with long texts in pieces: what the libraries keep while they encode is 25 times as large as a text."""
    for document in found:
        if not isinstance(document, str) or len(document) <= 2 * _BATCH:
            yield document
            continue
        parts = cut_text(document, _BATCH)
        last = next(parts)
        for part in parts:
            yield TextPiece(last, True, document)
            last = part
        yield TextPiece(last, False, document)


def _batches(found: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about a million characters."""
    batch: list[Document] = []
    length = 0
    for document in found:
        batch.append(document)
        length += _length(document)
        if length >= _BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _encoded(tokenizer: Tokenizer, batch: Sequence[Document], unit: WorkUnit[Any]) -> Iterator[_Encoded]:
    """``batch`` as tokens, in its order; texts are encoded together, as tokenizers are faster that way."""
    try:
        plain = iter(tokenizer.encode_batch([_plain(one) for one in batch if isinstance(one, str | TextPiece)]))
        parts = iter(_parts_encoded(tokenizer, [one for one in batch if isinstance(one, TextParts)]))
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
    """Making the table takes longer than looking up a short document in it."""
    return tokenizer.bytes_per_token()


def _parts_encoded(tokenizer: Tokenizer, documents: Sequence[TextParts]) -> Iterator[_Encoded]:
    """``documents``, each encoded as one text: a tokenizer may write the beginning of a text as nothing else."""
    texts = [document.whole for document in documents]
    if any(document.template for document in documents):  # all, for they are of one source
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        encoded = tokenizer.encode_spans(texts, template=True)
    else:
        encoded = tokenizer.encode_spans(texts)
    for document, spans in zip(documents, encoded, strict=True):
        loss_mask = _loss_mask(document, spans)
        yield _Encoded(spans.ids, loss_mask, _size(document), ends=document.ends, is_text=not document.template)


def _loss_mask(document: TextParts, spans: Spans) -> np.ndarray:
    """True where an id stands for a character of a text that is learnt: bool [tokens]."""
    borders = np.cumsum([len(text) for text in document.texts])
    # An id without characters is of the text that the next character is of.
    first = np.minimum(np.searchsorted(borders, spans.starts, side="right"), borders.size - 1)
    last = np.searchsorted(borders, np.maximum(spans.stops, spans.starts + 1), side="left")
    loss_mask = [one and text != "" for one, text in zip(document.loss_mask, document.texts, strict=True)]
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


def _plain(document: str | TextPiece) -> str:
    return document if isinstance(document, str) else document.text


def _length(document: Document) -> int:
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
    """UTF-8 bytes of text; of tokens the bytes that they take here."""
    match document:
        case str():
            return len(document) if document.isascii() else len(document.encode("utf-8"))
        case TextPiece():
            return _size(document.text)
        case TextParts():
            return sum(map(_size, document.texts))
        case TokenIds():
            return document.ids.nbytes
