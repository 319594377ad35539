"""Documents that a template writes: the text of a row, and of a conversation by the chat template of a tokenizer."""

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

_ADVICE = "; give another with"  # of the command line, where there is no row
_ROLES = ("system", "user", "assistant")
_MOST_ROWS, _MOST_BYTES = 1000, 1 << 20  # sent at a time: more are no faster, and one byte too many waits in memory

Location = Callable[[], str]


@dataclass(frozen=True)
class Unwritten:
    """A row, pickled, of which a template is to write the text."""

    row: bytes


Made = Document | tuple[Document, ...] | Unwritten | None
"""What becomes of a row: a document, several (the parts of a piece of music), or None for one without a separator."""
Result = Made | BadRow | Unwanted


def unwritten(row: Mapping[str, object]) -> Unwritten:
    """``row`` for a template, to which null is a field that is not there. Raises BadRow for what cannot be sent."""
    try:
        return Unwritten(pickle.dumps(without_nulls(dict(row))))
    except Exception as error:  # values of any library, nested to any depth
        raise BadRow("no_text", f"template: {one_line(error)}; correct the row") from None


def written(document: TemplateFields, rows: Iterable[tuple[Result, Location]]) -> Iterator[tuple[Result, Location]]:
    """``rows`` with the text that the template of ``document`` writes in place of each `Unwritten`, or the BadRow of
    one without what the template asks for, with a value that is no text where it writes one, or beyond its bounds.

    The process of the templates gets many rows at a time. What reading ``rows`` raises comes after those before it.
    """
    held: list[tuple[Result, Location]] = []
    size, failed = 0, None
    try:
        for result, location in rows:
            held.append((result, location))
            size += len(result.row) if isinstance(result, Unwritten) else 0
            if len(held) >= _MOST_ROWS or size >= _MOST_BYTES:
                yield from _written(document.text, held)
                held, size = [], 0
    except UserError as error:
        failed = error
    yield from _written(document.text, held)
    if failed is not None:
        raise failed


def _written(template: str, held: list[tuple[Result, Location]]) -> Iterator[tuple[Result, Location]]:
    texts = iter(render_rows(template, [result.row for result, _ in held if isinstance(result, Unwritten)]))
    for result, location in held:
        yield (_text_or_why(next(texts)) if isinstance(result, Unwritten) else result), location


def _text_or_why(text: str | TemplateError) -> str | BadRow:
    if isinstance(text, TemplateError):
        told = f"template: {str(text).rstrip('.')}; correct the row or the template"
        if text.undefined:
            return BadRow("no_field", f"{told}, or write `| default('')` after it")
        return BadRow("no_text", told)
    try:
        check_text(text)
    except UserError as error:
        return BadRow("surrogate", str(error))
    return text


def messages_of(value: object) -> object:
    """Messages as JSON has them. Tables give all objects of a column the same keys, with null where there was none; and
    `datasets` keeps a `Sequence` of objects as one object of lists (https://huggingface.co/docs/datasets, Features)."""
    value = without_nulls(value)
    if not is_mapping(value) or not all(is_list(held) for held in value.values()):
        return value
    if len({len(held) for held in value.values()}) != 1:
        return value
    return without_nulls([dict(zip(value, held, strict=True)) for held in zip(*value.values(), strict=True)])


def without_nulls(value: object) -> object:
    """``value`` without the keys that hold null, in objects at any depth; null as an item of a list stays."""
    if is_mapping(value):
        return {name: without_nulls(held) for name, held in value.items() if held is not None}
    return [without_nulls(held) for held in value] if is_list(value) else value


class Conversations:
    """Lists of messages, written by a template: that of the file ``template``, or the tokenizer's own, on the day
    ``date`` (YYYY-MM-DD)."""

    def __init__(self, template: str | None, tokenizer: Tokenizer | None, date: str | None = None) -> None:
        """Raises UserError when there is no template, or one that cannot be read."""
        self._format = None if tokenizer is None else _format(template, tokenizer, date)
        self._ends = turn_ends(tokenizer, self._format)

    def document(self, messages: object) -> TextParts:
        """``messages`` as what the template writes around and for each; only their own texts without a tokenizer.

        An answer without text has no loss, and neither has what ends it. Raises UserError for what is no list of
        messages, for a template that fails, and for one that does not write a conversation as the beginning of a longer
        one: then nobody could say which text is the assistant's.
        """
        said = _checked(messages)
        if self._format is None:
            contents = tuple(message["content"] for message in said)
            return TextParts(contents, (True,) * len(contents))
        texts: list[str] = []
        loss_mask: list[bool] = []
        written = ""
        for number, message in enumerate(said, 1):
            answer = message["role"] == "assistant"
            if answer:
                written = self._add(texts, written, said[: number - 1], number, answer_next=True)
                loss_mask.append(False)
            if answer or number == len(said):
                written = self._add(texts, written, said[:number], number, answer_next=False)
                loss_mask.append(answer and bool(message["content"].strip()))
        return TextParts(tuple(texts), tuple(loss_mask), template=True, ends=self._ends)

    def _add(self, texts: list[str], written: str, said: list[Message], number: int, *, answer_next: bool) -> str:
        """Append to ``texts`` what ``said`` has more than ``written``, and return all of it."""
        assert self._format is not None
        try:
            whole = self._format.render(said, answer_next=answer_next)
        except UserError as error:
            raise UserError(f"{str(error).partition(_ADVICE)[0]}; correct the row or the template") from None
        if not whole.startswith(written):
            raise UserError(
                f"chat template: what it writes for the first {number - 1} messages is not how it begins the first "
                f"{number}, so that no text is known to be the assistant's; use a template that appends only"
            )
        texts.append(whole[len(written) :])
        return whole


def turn_ends(tokenizer: Tokenizer | None, chat: ChatFormat | None = None) -> frozenset[int]:
    """The special ids that end a turn of ``tokenizer``, written by ``chat`` or else by its own template: a conversation
    that ends with one of them needs no end id after it."""
    from quintet.tokenize.bounds import text_bounds
    from quintet.tokenize.chat import ChatFormat
    from quintet.tokenize.huggingface import HuggingFaceTokenizer

    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return frozenset()
    if chat is None and tokenizer.chat.template is not None:
        chat = ChatFormat(tokenizer, tokenizer.chat.template)
    bounds = text_bounds(tokenizer)
    try:
        ends = (bounds if chat is None else chat.bounds(bounds)).stop_ids
    except UserError:  # a template may refuse the conversation that it is tried on, and write those of the rows
        ends = bounds.stop_ids
    return ends & frozenset(tokenizer.special_tokens.values())


def _format(template: str | None, tokenizer: Tokenizer, date: str | None) -> ChatFormat:
    from quintet.tokenize.chat import ChatFormat, read_template
    from quintet.tokenize.huggingface import HuggingFaceTokenizer

    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError("chat: the tokenizer must know special tokens; set `tokenizer.kind` to huggingface or bpe")
    if template is None and tokenizer.chat.template is None:
        raise UserError("chat: the tokenizer has no chat template; name a Jinja file as `template` of the document")
    text = tokenizer.chat.template if template is None else read_template(local_path(template))
    assert text is not None
    return ChatFormat(tokenizer, text, partial(_day, date))


def _day(date: str | None) -> datetime:
    """The time that a template is told: data that follow the clock would not be the same tomorrow."""
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
