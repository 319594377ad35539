"""Documents that a template writes: the text of a row, or of a conversation by the chat template of a tokenizer."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, cast

from quintet.config.documents import TemplateFields
from quintet.config.keypath import is_list, is_mapping
from quintet.config.names import local_path
from quintet.data.sources.base import BadRow, Document, TextParts, Unwanted
from quintet.errors import UserError, one_line
from quintet.templates import TemplateError, render_rows
from quintet.tokenize.base import Tokenizer, check_text

if TYPE_CHECKING:
    from quintet.tokenize.chat import ChatFormat, Message

_ADVICE = "; give another with"  # the end of a message for the command line
_ROLES = ("system", "user", "assistant")
_MOST_ROWS, _MOST_BYTES = 1000, 1 << 20  # sent to the process of templates at once; more are no faster

Location = Callable[[], str]


@dataclass(frozen=True)
class TemplateRow:
    """A row, pickled, whose text a template has yet to write."""

    row: bytes


RowDocuments = Document | tuple[Document, ...] | TemplateRow | None
"""The document of a row, several (the parts of a piece of music), or None for a row without a separator."""
RowResult = RowDocuments | BadRow | Unwanted


def template_row(row: Mapping[str, object]) -> TemplateRow:
    """Return ``row`` for a template, without fields that are null. Raises BadRow for a value that cannot be sent."""
    try:
        return TemplateRow(pickle.dumps(without_nulls(dict(row))))
    except Exception as error:  # values of any library, nested to any depth
        raise BadRow("no_text", f"template: {one_line(error)}; correct the row") from None


def write_by_template(
    document: TemplateFields, rows: Iterable[tuple[RowResult, Location]]
) -> Iterator[tuple[RowResult, Location]]:
    """Yield ``rows``, with each `TemplateRow` replaced by the text that the template of ``document`` writes, or by a
    BadRow: the row lacks a field, the template writes a value that is no text, or exceeds its limits.

    The process of templates gets many rows at once. An error in reading ``rows`` is raised after the rows before it.
    """
    held: list[tuple[RowResult, Location]] = []
    size, failure = 0, None
    try:
        for result, location in rows:
            held.append((result, location))
            size += len(result.row) if isinstance(result, TemplateRow) else 0
            if len(held) >= _MOST_ROWS or size >= _MOST_BYTES:
                yield from _written(document.text, held)
                held, size = [], 0
    except UserError as error:
        failure = error
    yield from _written(document.text, held)
    if failure is not None:
        raise failure


def _written(template: str, held: list[tuple[RowResult, Location]]) -> Iterator[tuple[RowResult, Location]]:
    texts = iter(render_rows(template, [result.row for result, _ in held if isinstance(result, TemplateRow)]))
    for result, location in held:
        yield (_text_or_error(next(texts)) if isinstance(result, TemplateRow) else result), location


def _text_or_error(text: str | TemplateError) -> str | BadRow:
    if isinstance(text, TemplateError):
        message = f"template: {str(text).rstrip('.')}; correct the row or the template"
        if text.undefined:
            return BadRow("no_field", f"{message}, or write `| default('')` after it")
        return BadRow("no_text", message)
    try:
        check_text(text)
    except UserError as error:
        return BadRow("surrogate", str(error))
    return text


def messages_of(value: object) -> object:
    """Return messages as they are in JSON. Tables give all objects of a column the same keys, null for a missing one;
    and `datasets` stores a `Sequence` of objects as an object of lists (https://huggingface.co/docs/datasets,
    Features)."""
    value = without_nulls(value)
    if not is_mapping(value) or not all(is_list(held) for held in value.values()):
        return value
    if len({len(held) for held in value.values()}) != 1:
        return value
    return without_nulls([dict(zip(value, held, strict=True)) for held in zip(*value.values(), strict=True)])


def without_nulls(value: object) -> object:
    """Return ``value`` without the keys that hold null, in objects at any depth; null as an item of a list stays."""
    if is_mapping(value):
        return {name: without_nulls(held) for name, held in value.items() if held is not None}
    return [without_nulls(held) for held in value] if is_list(value) else value


class Conversations:
    """Conversations written by the chat template of the file ``template``, or by the tokenizer's own, on the day
    ``date`` (YYYY-MM-DD)."""

    def __init__(self, template: str | None, tokenizer: Tokenizer | None, date: str | None = None) -> None:
        """Raises UserError when there is no template, or when it cannot be read."""
        self._format = None if tokenizer is None else _format(template, tokenizer, date)
        self._ends = turn_ends(tokenizer, self._format)

    def document(self, messages: object) -> TextParts:
        """Return the text that the template writes for ``messages``; without a tokenizer, the contents of the messages.

        The assistant's answers, and what the template writes after each, count in the loss, except empty answers.
        Raises UserError if ``messages`` are no list of messages, or if the template fails. To find the answers, each
        text for the first messages must be the beginning of the text for all; raises UserError if it is not.
        """
        conversation = _checked(messages)
        if self._format is None:
            contents = tuple(message["content"] for message in conversation)
            return TextParts(contents, (True,) * len(contents))
        texts: list[str] = []
        loss_mask: list[bool] = []
        written = ""
        for number, message in enumerate(conversation, 1):
            answer = message["role"] == "assistant"
            if answer:
                written = self._add(texts, written, conversation[: number - 1], number, answer_next=True)
                loss_mask.append(False)
            if answer or number == len(conversation):
                written = self._add(texts, written, conversation[:number], number, answer_next=False)
                loss_mask.append(answer and bool(message["content"].strip()))
        return TextParts(tuple(texts), tuple(loss_mask), template=True, ends=self._ends)

    def _add(self, texts: list[str], written: str, first: list[Message], number: int, *, answer_next: bool) -> str:
        """Append to ``texts`` what the text of the ``first`` messages adds to ``written``, and return that text."""
        assert self._format is not None
        try:
            whole = self._format.render(first, answer_next=answer_next)
        except UserError as error:
            raise UserError(f"{str(error).partition(_ADVICE)[0]}; correct the row or the template") from None
        if not whole.startswith(written):
            raise UserError(
                f"chat template: its text for the first {number - 1} messages is not the beginning of its text for the "
                f"first {number}, so the assistant's text cannot be found; use a template that only appends"
            )
        texts.append(whole[len(written) :])
        return whole


def turn_ends(tokenizer: Tokenizer | None, chat: ChatFormat | None = None) -> frozenset[int]:
    """Return the special ids that end a turn in the format ``chat``, or by the tokenizer's own template: a conversation
    that ends with one of them needs no end id."""
    from quintet.tokenize.bounds import text_bounds
    from quintet.tokenize.chat import ChatFormat, chat_template
    from quintet.tokenize.huggingface import HuggingFaceTokenizer

    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return frozenset()
    if chat is None and (template := chat_template(tokenizer)) is not None:
        chat = ChatFormat(tokenizer, template)
    bounds = text_bounds(tokenizer)
    try:
        ends = (bounds if chat is None else chat.bounds(bounds)).stop_ids
    except UserError:  # a template may refuse the trial conversation and yet write those of the rows
        ends = bounds.stop_ids
    return ends & frozenset(tokenizer.special_tokens.values())


def _format(template: str | None, tokenizer: Tokenizer, date: str | None) -> ChatFormat:
    from quintet.tokenize.chat import ChatFormat, chat_template
    from quintet.tokenize.huggingface import HuggingFaceTokenizer

    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError("chat: the tokenizer must know special tokens; set `tokenizer.kind` to huggingface or bpe")
    text = chat_template(tokenizer, None if template is None else local_path(template))
    if text is None:
        raise UserError("chat: the tokenizer has no chat template; name a Jinja file as `template` of the document")
    return ChatFormat(tokenizer, text, partial(_day, date))


def _day(date: str | None) -> datetime:
    """Return the time for a template. Raises UserError without a date: with the clock's, data would change by the
    day."""
    if date is None:
        raise UserError("asks for the date (strftime_now); set `document.date`, such as 2024-07-26")
    return datetime.fromisoformat(date)


def _checked(messages: object) -> list[Message]:
    if not is_list(messages) or not messages:
        raise UserError("chat: there must be a list of messages with `role` and `content`; name the field that has it")
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if is_mapping(message) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            raise UserError(
                f"chat: message {number} must have a `role`, one of {', '.join(_ROLES)}, and a text as `content`"
            )
    return cast("list[Message]", messages)
