"""Rows of tables as documents: from a mapping of names to values to a document, and what happens to bad rows."""

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
    RowDocuments,
    RowResult,
    TemplateRow,
    messages_of,
    template_row,
    turn_ends,
    write_by_template,
)
from quintet.errors import UserError
from quintet.tokenize.base import Tokenizer, check_text, digest

MASK = "attention_mask"
_ANSWERS = "2"  # raise it when the same prompts and answers give other tokens or another loss mask than before
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
MakeDocument = Callable[[Row, Location], RowDocuments]


@dataclass(frozen=True)
class Columns:
    """The columns that a document needs: columns of text, others, and optional ones, which are used if they exist."""

    texts: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def used(self, names: list[str]) -> list[str]:
        """Return the columns to read of a table with the columns ``names``."""
        return [*self.texts, *self.others, *(name for name in self.optional if name in names)]

    def check(self, names: list[str], path: str) -> None:
        """Raise UserError unless the table at ``path``, with the columns ``names``, has each needed column once."""
        for missing in (*self.texts, *self.others):
            if missing not in names:
                shown = ", ".join(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names)
                raise UserError(f"{path}: has no column {missing!r}; it has {shown}; name another one under `document`")
        for name in self.used(names):
            if names.count(name) > 1:
                raise UserError(f"{path}: has {names.count(name)} columns {name!r}; rename or remove all but one")


def columns_of(document: RowConfig) -> Columns:
    """Return the columns that ``document`` needs."""
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
    """Return a function from a row to its document, or None for a row without a separator. The function raises BadRow.

    Without a ``tokenizer`` the documents are the plain texts, to train a tokenizer on.
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
            return lambda row, _: template_row(row)
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
    """Return a function from a text to its document, or None for a text without the separator."""
    prefix = document.prefix
    if isinstance(document, ConditionalText):
        return lambda text: _conditional(prefix + text, document.separator)
    return lambda text: prefix + text if text else text


SourceOfRows = TypeVar("SourceOfRows", JsonlSource, CsvSource, ParquetSource, HuggingFaceSource)


class RowReader(Reader[SourceOfRows, Part]):
    """A base for readers of rows."""

    def documents_of(
        self, rows: Iterable[tuple[Raw, Location]], make: Callable[[Raw, Location], RowDocuments], report: Report
    ) -> Iterator[Document]:
        """Yield the documents that ``make`` makes of the ``rows`` of one file. A row that cannot be used raises
        UserError with its location, or with ``on_error: skip`` is counted in ``report``."""
        skip, kind = self.source.on_error == "skip", self.source.document
        results = ((_result(make, raw, location), location) for raw, location in rows)
        try:
            for result, location in write_by_template(kind, results) if isinstance(kind, TemplateFields) else results:
                if isinstance(result, BadRow):
                    if not skip:
                        raise UserError(f"{location()}: {result}")
                    report.dropped[result.reason] += 1
                    continue
                if isinstance(result, Unwanted):
                    report.dropped[str(result)] += 1
                    continue
                if result is None:
                    report.dropped["without_separator"] += 1
                    continue
                assert not isinstance(result, TemplateRow)
                documents = result if isinstance(result, tuple) else (result,)
                masks = [ids.loss_mask for ids in documents if isinstance(ids, TokenIds) and ids.loss_mask is not None]
                if masks:
                    report.matched["labels"] += 1
                    report.matched["ignored"] += not all(mask.all() for mask in masks)
                yield from documents
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
                "all of their tokens count in the loss"
            )
        elif documents and not matched.get("ignored"):
            yield f"`document.ignore_index`: no label is {document.ignore_index}: all tokens count in the loss"


def _result(make: Callable[[Raw, Location], RowDocuments], raw: Raw, location: Location) -> RowResult:
    try:
        return make(raw, location)
    except (BadRow, Unwanted) as error:
        return error


def reading_rules(source: Any, tokenizer: Tokenizer) -> str:
    """Return the part of a store's key for what else the documents of ``source`` depend on, besides the source and the
    ids that ``tokenizer`` gives a text: how answers are told from prompts, the chat template, the ids that end a
    turn."""
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
    """Return the text in ``field``. Raises BadRow."""
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
    """Return the document of a row of ids, in which ids of ``ends`` are end ids too; several documents
    if the row has their lengths. Ids whose label is ``ignore_index`` do not count in the loss. Raises BadRow."""
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
    make = partial(TokenIds, ends=ends, learn_end=document.learn_end)
    if not cuts.size:
        return make(ids, location(), loss_mask)
    masks = [None] * (cuts.size + 1) if loss_mask is None else np.split(loss_mask, cuts)
    return tuple(make(part, location(), mask) for part, mask in zip(np.split(ids, cuts), masks, strict=True))


def _cuts(row: Row, lengths: str | None, size: int) -> np.ndarray:
    """Return where each document but the first begins in a row of ``size`` ids, by the field ``lengths`` if the row has
    it: int64, ascending. Raises BadRow if these are not the lengths of what the row holds."""
    if lengths is None or row.get(lengths) is None:
        return np.empty(0, dtype=np.int64)
    values = _integers(row, lengths)
    if values.sum() != size or (values < 1).any():
        raise BadRow(
            "bad_lengths",
            f"field {lengths!r} must hold lengths from 1 on of {size} ids together, as many as the row has, and holds "
            f"{values.tolist()[:_MOST_NAMES]}; make the row anew, or set `document.seq_lengths: null`",
        )
    return np.cumsum(values)[:-1]


def loss_mask_of(ids: np.ndarray, labels: np.ndarray, ignore_index: int = IGNORED) -> np.ndarray:
    """Return the loss mask of ``labels``, bool [tokens]. Raises BadRow unless each is the same as the id, or
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
            f"or {ignore_index} (`ignore_index`) for tokens that do not count in the loss",
        )
    return loss_mask


def check_texts(document: RowDocuments) -> None:
    """Raise BadRow for text that has no UTF-8."""
    texts = (document,) if isinstance(document, str) else document.texts if isinstance(document, TextParts) else ()
    try:
        for text in texts:
            check_text(text)
    except UserError as error:
        raise BadRow("surrogate", str(error)) from None


def kind_of(value: object) -> str:
    """Return the kind of a value of JSON or of a table, in words."""
    return _KINDS.get(type(value), f"a value of type {type(value).__name__}")


def _value(row: Row, field: str) -> object:
    """Return the value of ``field``. Raises BadRow if it is missing or null: tables have every column in every row."""
    value = row.get(field)
    if value is not None:
        return value
    if field in row:
        raise BadRow("no_field", f"field {field!r} holds null; name one that does not, or set `on_error: skip`")
    names = ", ".join(list(row)[:_MOST_NAMES]) or "no field at all"
    raise BadRow("no_field", f"has no field {field!r} (it has {names}); name another one under `document`")


def _integers(row: Row, field: str) -> np.ndarray:
    value = _value(row, field)
    integers: np.ndarray = np.empty(0)
    if is_list(value):
        with suppress(ValueError, OverflowError):
            integers = np.asarray(value) if value else np.empty(0, np.int64)
    if integers.ndim != 1 or integers.dtype.kind not in "iu":
        raise BadRow("no_ids", f"field {field!r} holds {kind_of(value)}, not a list of ids; name one that does")
    return integers


def _conditional(text: str, separator: str) -> TextParts | None:
    prompt, match, answer = text.partition(separator)
    return _answered(prompt + match, answer) if match else None


def _answered(prompt: str, answer: str) -> TextParts:
    """Return a prompt, which does not count in the loss, and its answer, which does if it has a text."""
    return TextParts((prompt, answer), (False, bool(answer.strip())))


def _conversation(conversations: Conversations, row: Row, field: str) -> TextParts:
    try:
        return conversations.document(messages_of(_value(row, field)))
    except UserError as error:
        raise BadRow("bad_chat", str(error)) from None
