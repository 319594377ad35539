"""The section `document` of a source: the part of a row, line or file that is a document, and the tokens with a
loss."""

from __future__ import annotations

import datetime
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.templates import TemplateError, names_in

_PREFIX = "text before each document, with a loss like the document's text"
_SEPARATOR = "the loss begins after the first occurrence of this text; a document without it is dropped"
IGNORED = -100
"""The target of a token without a loss, in batches and in data that has labels."""
IGNORE_INDEX = "the label of a token without a loss"
_UNLEARNT = "text before each document; it has no loss"


Content = Literal["text", "ids", "notes"]
"""The contents that a document can have."""


class WholeText(ConfigSection):
    """All of the text."""

    kind: Literal["text"] = key("text", "the whole text, all of it with a loss")
    prefix: str = key("", _PREFIX)


class ConditionalText(ConfigSection):
    """A prompt, a separator and a text, of which only the text has a loss."""

    kind: Literal["conditional"] = key(..., "a loss only after a separator")
    separator: str = key(..., _SEPARATOR, min_length=1)
    prefix: str = key("", _UNLEARNT)


class TextField(WholeText):
    """The text of a field."""

    field: str = key("text", "the field or column that holds the text", min_length=1)


class ConditionalField(ConditionalText):
    """A prompt, a separator and a text in one field; only the text has a loss."""

    field: str = key("text", "the field or column that holds the text", min_length=1)


class AnswerFields(ConfigSection):
    """A prompt and its answer in two fields; the answer and the end id after it have a loss."""

    kind: Literal["answer"] = key(..., "a loss only on the answer to a prompt")
    prompt: str = key("prompt", "the field or column that holds the prompt", min_length=1)
    answer: str = key("answer", "the field or column that holds the answer", min_length=1)
    between: str = key("", "text between prompt and answer; it has no loss")


class TemplateFields(ConfigSection):
    """A text that a Jinja template makes of several fields; all of it has a loss."""

    kind: Literal["template"] = key(..., "the text of several fields")
    text: str = key(
        ...,
        "the text, with `{{ name }}` for a field or column, `{{ name[0].key }}` for a value within it, and Jinja's "
        "`{% for … %}`, `{% if … is defined %}` and `| default('')`; whitespace is kept. Values must be texts; "
        "convert a number with `{{ name | string }}`",
        min_length=1,
    )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields or columns that the template names, sorted. Raises TemplateError for a template that is not
        valid."""
        return _names_in(self.text)

    def errors(self) -> ConfigErrors:
        """Yield an error for a template that is not valid, or that names no field."""
        try:
            if not self.fields:
                yield config_error("text", "names no field; write {{ name }} for the text of a field")
        except TemplateError as error:
            yield config_error("text", str(error))


class ChatField(ConfigSection):
    """A conversation: a list of messages, each with `role` and `content`, that a chat template makes a text of. The
    assistant's messages have a loss, and so has what the template puts after them."""

    kind: Literal["chat"] = key(..., "a loss only on the assistant's messages")
    messages: str = key("messages", "the field or column that holds the list of messages", min_length=1)
    template: str | None = key(None, "a Jinja file; the tokenizer's own template when not given", min_length=1)
    date: str | None = key(
        None,
        "the day, as YYYY-MM-DD, that the template gets for today (strftime_now); required by templates that ask for "
        "it, because a run must not depend on the clock",
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a date that does not exist."""
        if self.date is not None:
            with suppress(ValueError):
                if datetime.date.fromisoformat(self.date).isoformat() == self.date:
                    return
            yield config_error("date", f"{self.date!r} is not a date; write one such as 2024-07-26")


class TokenField(ConfigSection):
    """Token ids, made with the tokenizer of the run. If there is an `attention_mask`, tokens where it is 0 are
    dropped."""

    holds: ClassVar[Content] = "ids"

    kind: Literal["tokens"] = key(..., "token ids")
    ids: str = key("input_ids", "the field or column that holds the ids", min_length=1)
    labels: str = key(
        "labels",
        "the field or column of labels, if it exists: the ids again, or `ignore_index` for tokens without a loss",
    )
    ignore_index: int = key(IGNORED, IGNORE_INDEX, unit="id")
    seq_lengths: str | None = key(
        "seq_lengths",
        "the field or column of the lengths of the documents that are packed in a row, if it exists, as TRL writes it; "
        "null takes each row as one document",
        min_length=1,
    )
    learn_end: bool = key(
        True, "an end id that is added to a row without one has a loss, provided that the row's last token has"
    )


class Music(ConfigSection):
    """The keys of all sources of piano music."""

    pauses: float | None = key(
        None,
        "a piece is cut at silences longer than this, and each part is a document; not cut when not given",
        unit="seconds",
        gt=0,
    )
    only_by: tuple[str, ...] = key(
        (), "surnames of composers, such as bach, to whose pieces the source is limited; not limited when empty"
    )


class NotesField(Music):
    """A piece of piano music: lists `pitch`, `velocity`, `start` and `end` of equal length in one field, and JSON text
    with `composer` and `dataset` in another, as in piano-gpt's data sets. For tokenizers of notes."""

    holds: ClassVar[Content] = "notes"

    kind: Literal["notes"] = key(..., "a table of notes")
    notes: str = key("notes", "the field or column that holds the lists", min_length=1)
    source: str = key("source", "the field or column of metadata of the piece, as JSON, if it exists")


TextConfig = Annotated[WholeText | ConditionalText, Field(discriminator="kind")]
RowConfig = Annotated[
    TextField | ConditionalField | AnswerFields | TemplateFields | ChatField | TokenField | NotesField,
    Field(discriminator="kind"),
]


_names_in = lru_cache(maxsize=16)(names_in)
