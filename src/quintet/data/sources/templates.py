"""Documents that a template writes: the text of a row, and of a conversation by the chat template of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, cast

import jinja2

from quintet.config.documents import TemplateFields
from quintet.config.keypath import is_list, is_mapping
from quintet.config.names import local_path
from quintet.data.sources.base import BadRow, TextParts
from quintet.errors import UserError, one_line
from quintet.tokenize.base import Tokenizer

if TYPE_CHECKING:
    from quintet.tokenize.chat import ChatFormat, Message

_ADVICE = "; give another with"  # of the command line, where there is no row
_ROLES = ("system", "user", "assistant")


def text_from(row: Mapping[str, object], document: TemplateFields) -> str:
    """The text that the template of ``document`` writes of ``row``, to which null is a field that is not there.

    Raises BadRow for a row without what the template asks for, or with a value that is no text where it writes one.
    """
    try:
        return document.compiled.render(without_nulls(dict(row)))
    except jinja2.UndefinedError as error:
        message = f"template: {one_line(error)}; correct the row or the template, or write `| default('')` after it"
        raise BadRow("no_field", message) from None
    except Exception as error:  # a template is a program of its own, and fails in all the ways of one
        raise BadRow("no_text", f"template: {one_line(error)}; correct the row or the template") from None


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
