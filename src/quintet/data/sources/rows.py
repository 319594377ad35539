"""Rows as documents: from a mapping of names to values to a document, and what becomes of rows that cannot be one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

import numpy as np

from quintet.config.documents import (
    IGNORED,
    AnswerFields,
    ChatField,
    ConditionalField,
    ConditionalText,
    NotesField,
    RowConfig,
    TemplateFields,
    TextField,
    TokenField,
    WholeText,
)
from quintet.config.keypath import is_list
from quintet.config.sources import CsvSource, HuggingFaceSource, JsonlSource, ParquetSource
from quintet.data.sources.base import (
    BadRow,
    Document,
    Part,
    Reader,
    Report,
    SourceIndex,
    TextParts,
    TokenIds,
    Unwanted,
)
from quintet.data.sources.music import metadata_of, notes_of, parts_of
from quintet.data.sources.reading import BadFile
from quintet.data.sources.templates import (
    Conversations,
    Location,
    Made,
    Result,
    Unwritten,
    messages_of,
    turn_ends,
    unwritten,
    written,
)
from quintet.errors import UserError
from quintet.tokenize.base import Tokenizer, check_text, digest

MASK = "attention_mask"
_ANSWERS = "2"  # to be raised when the same prompts and answers give other tokens, or others with a loss, than before
_MOST_NAMES = 10
_LONGEST_NAME = 40
_KINDS: dict[type[object], str] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    Decimal: "a decimal number",
    str: "text",
    bytes: "bytes",
    list: "a list",
    dict: "an object",
}

Raw = TypeVar("Raw")
Row = Mapping[str, object]
MakeDocument = Callable[[Row, Location], Made]


@dataclass(frozen=True)
class Columns:
    """The columns that a document needs: those with text, others, and those that are used where they are."""

    texts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def wanted(self, names: list[str]) -> list[str]:
        """The columns among ``names`` that are to be read."""
        return [*self.texts, *self.others, *(name for name in self.optional if name in names)]

    def check(self, names: list[str], path: str) -> None:
        """Raise UserError unless the table at ``path`` with the columns ``names`` has all that are needed, once."""
        for name in (*self.texts, *self.others):
            if name not in names:
                there = ", ".join(one if len(one) <= _LONGEST_NAME else f"{one[:_LONGEST_NAME]}…" for one in names)
                raise UserError(f"{path}: has no column {name!r}; it has {there}; name another one under `document`")
        for name in self.wanted(names):
            if names.count(name) > 1:
                raise UserError(f"{path}: has {names.count(name)} columns {name!r}; rename or remove all but one")


def columns_of(document: RowConfig) -> Columns:
    """The columns that ``document`` needs."""
    match document:
        case AnswerFields():
            return Columns((document.prompt, document.answer))
        case TemplateFields():
            return Columns(others=document.fields)
        case ChatField():
            return Columns(others=(document.messages,))
        case TokenField():
            lengths = () if document.seq_lengths is None else (document.seq_lengths,)
            return Columns(others=(document.ids,), optional=(document.labels, MASK, *lengths))
        case NotesField():
            return Columns(others=(document.notes,), optional=(document.source,))
        case _:
            return Columns((document.field,))


def document_maker(document: RowConfig, tokenizer: Tokenizer | None) -> MakeDocument:
    """A function from a row to a document, None where it has no separator; it raises BadRow.

    Without a ``tokenizer`` the documents are the texts alone, for a tokenizer to be made from.
    """
    match document:
        case TextField() | ConditionalField():
            cut = text_maker(document)
            return lambda row, _: cut(text_of(row, document.field))
        case AnswerFields():
            return lambda row, _: _answered(
                text_of(row, document.prompt) + document.between, text_of(row, document.answer)
            )
        case TemplateFields():
            return lambda row, _: unwritten(row)
        case ChatField():
            conversations = Conversations(document.template, tokenizer, document.date)
            return lambda row, _: _conversation(conversations, row, document.messages)
        case TokenField():
            ends = turn_ends(tokenizer)
            return lambda row, location: None if tokenizer is None else ids_of(row, document, location, ends)
        case NotesField():
            return lambda row, location: parts_of(
                notes_of(row, document), metadata_of(row, document), document, location()
            )


def text_maker(document: WholeText | ConditionalText) -> Callable[[str], Document | None]:
    """A function from a text to a document, None where it lacks the separator."""
    prefix = document.prefix
    if isinstance(document, ConditionalText):
        return lambda text: _conditional(prefix + text, document.separator)
    return lambda text: prefix + text if text else text


RowSource = TypeVar("RowSource", JsonlSource, CsvSource, ParquetSource, HuggingFaceSource)


class RowReader(Reader[RowSource, Part]):
    """A base for readers of rows."""

    def made(
        self, rows: Iterable[tuple[Raw, Location]], make: Callable[[Raw, Location], Made], report: Report
    ) -> Iterator[Document]:
        """A document for each of the ``rows`` of one file. Raises UserError with the place of one that cannot be used,
        or with ``on_error: skip`` counts it in ``report``."""
        skip, kind = self.source.on_error == "skip", self.source.document
        results = ((_result(make, raw, location), location) for raw, location in rows)
        try:
            for document, location in written(kind, results) if isinstance(kind, TemplateFields) else results:
                if isinstance(document, BadRow):
                    if not skip:
                        raise UserError(f"{location()}: {document}")
                    report.dropped[document.reason] += 1
                    continue
                if isinstance(document, Unwanted):
                    report.dropped[str(document)] += 1
                    continue
                if document is None:
                    report.dropped["without_separator"] += 1
                    continue
                assert not isinstance(document, Unwritten)
                found = document if isinstance(document, tuple) else (document,)
                masks = [one.loss_mask for one in found if isinstance(one, TokenIds) and one.loss_mask is not None]
                if masks:
                    report.matched["labels"] += 1
                    report.matched["ignored"] += not all(mask.all() for mask in masks)
                yield from found
        except BadFile:
            if not skip:
                raise
            report.dropped["damaged_file"] += 1

    def unmatched(self, index: SourceIndex, matched: Mapping[str, int], documents: int) -> Iterator[str]:
        document = self.source.document
        if not isinstance(document, TokenField) or not {"labels", "ignore_index"} & document.model_fields_set:
            return
        labelled = matched.get("labels", 0)
        if labelled < documents:
            yield (
                f"`document.labels`: {documents - labelled:,} of {documents:,} documents have no {document.labels!r}: "
                "all of their tokens have a loss"
            )
        elif documents and not matched.get("ignored"):
            yield f"`document.ignore_index`: no label is {document.ignore_index}: all tokens have a loss"


def _result(make: Callable[[Raw, Location], Made], raw: Raw, location: Location) -> Result:
    try:
        return make(raw, location)
    except (BadRow, Unwanted) as why_not:
        return why_not


def reading_rules(source: Any, tokenizer: Tokenizer) -> str:
    """A text for what the documents of ``source`` depend on besides the source and how ``tokenizer`` encodes a text:
    how answers are told from prompts, the chat template and the ids that end a turn. It is a part of a store's key."""
    document, chat = getattr(source, "document", None), getattr(tokenizer, "chat", None)
    match document:
        case AnswerFields() | ConditionalText():
            return _ANSWERS
        case ChatField() | TokenField() if chat is not None:
            own = getattr(document, "template", None) is None
            return digest(_ANSWERS, str(chat.template) if own else "", str(sorted(chat.end_ids)))
        case _:
            return ""


def text_of(row: Row, field: str) -> str:
    """The text in ``field``. Raises BadRow."""
    text = _value(row, field)
    if not isinstance(text, str):
        raise BadRow(
            "no_text",
            f"field {field!r} holds {kind_of(text)}, not text; name one that does, or set `on_error: skip`",
        )
    return text


def ids_of(
    row: Row, document: TokenField, location: Location, ends: frozenset[int] = frozenset()
) -> TokenIds | tuple[Document, ...]:
    """The tokens of a row, which ``ends`` end too, with a loss where its labels are not ``ignore_index``: one document,
    or several where the row says how long they are. Raises BadRow."""
    ids, loss_mask = _integers(row, document.ids), None
    cuts = _cuts(row, document.seq_lengths, ids.size)
    if row.get(document.labels) is not None:
        loss_mask = loss_mask_of(ids, _integers(row, document.labels), document.ignore_index)
    if row.get(MASK) is not None:
        kept = _integers(row, MASK) != 0
        if kept.size != ids.size:
            raise BadRow("bad_labels", f"{MASK!r} has {kept.size} values for {ids.size} ids; make the row anew")
        cuts = np.cumsum(kept)[cuts - 1]
        ids, loss_mask = ids[kept], None if loss_mask is None else loss_mask[kept]
    made = partial(TokenIds, ends=ends, learn_end=document.learn_end)
    if not cuts.size:
        return made(ids, location(), loss_mask)
    masks = [None] * (cuts.size + 1) if loss_mask is None else np.split(loss_mask, cuts)
    return tuple(made(part, location(), mask) for part, mask in zip(np.split(ids, cuts), masks, strict=True))


def _cuts(row: Row, lengths: str | None, size: int) -> np.ndarray:
    """The begin of each document but the first in a row of ``size`` ids: int64, ascending, by their ``lengths`` in the
    row if it has these. Raises BadRow where they are not the lengths of what the row holds."""
    if lengths is None or row.get(lengths) is None:
        return np.empty(0, dtype=np.int64)
    found = _integers(row, lengths)
    if found.sum() != size or (found < 1).any():
        raise BadRow(
            "bad_lengths",
            f"field {lengths!r} must hold lengths from 1 on of {size} ids together, as many as the row has, and holds "
            f"{found.tolist()[:_MOST_NAMES]}; make the row anew, or set `document.seq_lengths: null`",
        )
    return np.cumsum(found)[:-1]


def loss_mask_of(ids: np.ndarray, labels: np.ndarray, ignore_index: int = IGNORED) -> np.ndarray:
    """True where ``labels`` has a loss, bool [tokens]. Raises BadRow unless it is ``ids`` again, or
    ``ignore_index``."""
    if labels.shape != ids.shape:
        raise BadRow("bad_labels", f"there are {labels.size} labels for {ids.size} ids; make them anew")
    loss_mask = labels != ignore_index
    wrong = np.flatnonzero(loss_mask & (labels != ids))
    if wrong.size:
        at = int(wrong[0])
        raise BadRow(
            "bad_labels",
            f"label {at} is {int(labels[at])} where the id is {int(ids[at])}; labels are the ids again, not shifted, "
            f"or {ignore_index} (`ignore_index`) where there is no loss",
        )
    return loss_mask


def check_texts(document: Made) -> None:
    """Raise BadRow for text that has no UTF-8."""
    texts = (document,) if isinstance(document, str) else document.texts if isinstance(document, TextParts) else ()
    try:
        for text in texts:
            check_text(text)
    except UserError as error:
        raise BadRow("surrogate", str(error)) from None


def kind_of(value: object) -> str:
    """The kind of a value of JSON or of a table, in words."""
    return _KINDS.get(type(value), f"a value of type {type(value).__name__}")


def _value(row: Row, field: str) -> object:
    """The value of ``field``. Null counts as a field that is not there: tables have every column in every row."""
    value = row.get(field)
    if value is not None:
        return value
    if field in row:
        raise BadRow("no_field", f"field {field!r} holds null; name one that does not, or set `on_error: skip`")
    names = ", ".join(list(row)[:_MOST_NAMES]) or "no field at all"
    raise BadRow("no_field", f"has no field {field!r} (it has {names}); name another one under `document`")


def _integers(row: Row, field: str) -> np.ndarray:
    value = _value(row, field)
    found: np.ndarray = np.empty(0)
    if is_list(value):
        with suppress(ValueError, OverflowError):
            found = np.asarray(value) if value else np.empty(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise BadRow("no_ids", f"field {field!r} holds {kind_of(value)}, not a list of ids; name one that does")
    return found


def _conditional(text: str, separator: str) -> TextParts | None:
    before, found, after = text.partition(separator)
    return _answered(before + found, after) if found else None


def _answered(prompt: str, answer: str) -> TextParts:
    """A prompt without a loss and its answer with one; an answer without text has none, and neither has its end."""
    return TextParts((prompt, answer), (False, bool(answer.strip())))


def _conversation(conversations: Conversations, row: Row, field: str) -> TextParts:
    try:
        return conversations.document(messages_of(_value(row, field)))
    except UserError as error:
        raise BadRow("bad_chat", str(error)) from None
